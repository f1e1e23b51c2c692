"""Watch-dogs: what an operator must be told although nothing has failed loudly.

Owns which conditions are alarms, how long each may last first, and that each is said twice: when it
is raised and when it has passed. Looks at the node and changes nothing there; what an alarm leads
to is the node's business. Must not know who is told.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eplbd.core.epoch import Phase as EpochPhase
from eplbd.core.events import Note
from eplbd.core.group import Phase

if TYPE_CHECKING:
    from eplbd.core.balancer import Balancer
    from eplbd.core.ledger import Ledger
    from eplbd.core.node import Node
    from eplbd.core.settings import AlarmSettings

LOOK_S = 0.5
"""Between two looks: what is watched lasts for many seconds."""

LAG_FORWARDS = 64
"""Forwards that heat may be behind without a reason: agents report them in sixteens."""


class AlarmName(enum.StrEnum):
    """Everything that is watched for."""

    NO_WORKER = "no-worker"
    """No worker of any group is there."""
    RANK_MISSING = "rank-missing"
    """Some ranks of a group are there and others are not."""
    HEAT_STALE = "heat-stale"
    """Forwards go on, and no heat comes of them, or none of the phase that drives planning."""
    EPOCH_OVERDUE = "epoch-overdue"
    """An epoch neither ends nor waits for forwards."""
    PLACEMENT_FROZEN = "placement-frozen"
    """Ranks contradict each other; nothing moves until the group restarts."""
    POLICY_SUSPENDED = "policy-suspended"
    """It failed too often in a row, or broke its promises."""
    LEADER_LOST = "leader-lost"
    """A group's ranks are here, and the daemon that leads it, on another node, is not heard."""
    LATENCY = "latency"
    """Forwards are slowed beyond the ceiling although moves are as slow as they get."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One condition that holds. group: empty where it concerns the daemon. since: seconds."""

    name: AlarmName
    group: str
    reason: str
    since: float


@dataclass(slots=True)
class _Watch:
    """What was last seen of a group, and since when it has been so; seconds and forwards."""

    complete_at: float
    heat_at: float
    phase_at: float
    epoch_at: float
    steps: int = -1
    forward: int = 0
    """Of the group, when heat came last."""
    phase_forward: int = -1
    epoch: tuple[int, int] = (0, 0)


class Alarms:
    """All alarms of one daemon."""

    def __init__(self) -> None:
        self._active: dict[tuple[AlarmName, str], Alarm] = {}
        self._watches: dict[tuple[str, str], _Watch] = {}
        """By group and incarnation."""
        self._led_at: dict[str, float] = {}
        """By group that another node's daemon leads, when it was last as it should be."""
        self._worker_at: float | None = None
        self._next_look = 0.0

    @property
    def active(self) -> tuple[Alarm, ...]:
        """What holds now, in the order of raising."""
        return tuple(self._active.values())

    def look(self, node: Node, now: float) -> list[Note]:
        """Look, if it is time; a note for each alarm that is raised or has passed."""
        if now < self._next_look or node.stopping:
            return []
        self._next_look = now + LOOK_S
        found = {(name, group): reason for name, group, reason in self._found(node, now)}
        notes = []
        for key in [key for key in self._active if key not in found]:
            passed = self._active.pop(key)
            lasted = round(now - passed.since, 3)
            fields = {"alarm": str(passed.name), "group": passed.group, "lasted_s": lasted}
            notes.append(Note("info", "alarm cleared", fields))
        for (name, group), reason in found.items():
            if (name, group) not in self._active:
                self._active[name, group] = Alarm(name, group, reason, now)
                fields = {"alarm": str(name), "group": group, "reason": reason}
                notes.append(Note("error", "alarm raised", fields))
        return notes

    # --- conditions -----------------------------------------------------------------------------

    def _found(self, node: Node, now: float) -> Iterator[tuple[AlarmName, str, str]]:
        settings = node.settings.alarms
        reason = self._no_worker(node, settings, now)
        if reason:
            yield AlarmName.NO_WORKER, "", reason
        if node.questions.breaker.suspended:
            yield AlarmName.POLICY_SUSPENDED, "", node.questions.suspended_for
        yield from (
            (AlarmName.LEADER_LOST, name, why) for name, why in self._leader_lost(node, now)
        )
        lives = {(name, b.group.incarnation): b for name, b in node.balancers.items()}
        self._watches = {
            life: self._watches.get(life) or _Watch(now, now, now, now) for life in lives
        }
        for life, balancer in lives.items():
            watch, name = self._watches[life], life[0]
            checks = (
                (AlarmName.RANK_MISSING, _rank_missing(balancer, watch, settings, now)),
                (AlarmName.HEAT_STALE, _heat_stale(balancer, watch, settings, now)),
                (AlarmName.EPOCH_OVERDUE, _epoch_overdue(balancer, watch, settings, now)),
                (AlarmName.PLACEMENT_FROZEN, balancer.group.frozen),
                (AlarmName.LATENCY, _latency(balancer)),
            )
            yield from ((alarm, name, why) for alarm, why in checks if why)

    def _leader_lost(self, node: Node, now: float) -> Iterator[tuple[str, str]]:
        """Groups that are relayed to nobody, and why."""
        relays, patience_s = node.relays.groups, node.settings.alarms.no_worker_s
        self._led_at = {name: self._led_at.get(name, now) for name in relays}
        for name, relay in relays.items():
            if relay.linked or not relay.ranks:
                self._led_at[name] = now
            if now - self._led_at[name] >= patience_s:
                yield name, f"{relay.reason}: {relay.leader.endpoint}; the placement stays as it is"

    def _no_worker(self, node: Node, settings: AlarmSettings, now: float) -> str:
        present = any(len(b.group.missing) < b.group.shape.ranks for b in node.balancers.values())
        present |= any(relay.ranks for relay in node.relays.groups.values())
        if present or self._worker_at is None:
            self._worker_at = now
        if now - self._worker_at < settings.no_worker_s:
            return ""
        return (
            f"no worker is there for {settings.no_worker_s:g} s: the engine does not run, has not "
            "loaded its plugin, or does not reach the socket"
        )


def _rank_missing(balancer: Balancer, watch: _Watch, settings: AlarmSettings, now: float) -> str:
    group = balancer.group
    if not group.missing or len(group.missing) == group.shape.ranks:
        watch.complete_at = now
    if now - watch.complete_at < settings.no_worker_s:
        return ""
    return f"ranks {sorted(group.missing)} are missing: nothing is balanced until they are there"


def _heat_stale(balancer: Balancer, watch: _Watch, settings: AlarmSettings, now: float) -> str:
    group, ledger, phase = balancer.group, balancer.ledger, balancer.settings.balance.phase
    steps = ledger.statistics().steps if ledger is not None else 0
    if ledger is None or group.phase is not Phase.READY or steps != watch.steps:
        watch.heat_at, watch.steps, watch.forward = now, steps, group.forward
    if ledger is None:
        return ""
    went_on = group.forward - watch.forward
    if went_on > LAG_FORWARDS and now - watch.heat_at >= settings.heat_stale_s:
        return f"no step of heat is complete for {went_on} forwards"
    return _phase_stale(ledger, phase, watch, settings, now)


def _phase_stale(
    ledger: Ledger, phase: str, watch: _Watch, settings: AlarmSettings, now: float
) -> str:
    """Whether other phases alone are served, so that nothing is planned any more."""
    newest, of_phase = ledger.newest("all"), ledger.newest(phase)
    if newest - of_phase <= LAG_FORWARDS or of_phase != watch.phase_forward:
        watch.phase_at, watch.phase_forward = now, of_phase
    if now - watch.phase_at < settings.heat_stale_s:
        return ""
    return f"heat comes, but none of balance.phase = {phase}; steps that mix both are neither"


def _epoch_overdue(balancer: Balancer, watch: _Watch, settings: AlarmSettings, now: float) -> str:
    group, leader = balancer.group, balancer.group.leader
    if leader is None:
        return ""
    key = leader.term, leader.epoch
    # An engine without traffic runs no forwards: what is decided waits for them, however long.
    waits = leader.phase is EpochPhase.COMMIT and group.forward < leader.at
    if key != watch.epoch or waits:
        watch.epoch, watch.epoch_at = key, now
    if now - watch.epoch_at < settings.epoch_overdue_s:
        return ""
    ranks = sorted(leader.waiting)
    return f"epoch {leader.epoch} is in {leader.phase} and waits for ranks {ranks}"


def _latency(balancer: Balancer) -> str:
    pacer = balancer.pacer
    if not pacer.helpless:
        return ""
    return (
        f"forwards take {pacer.inflation:.3f} times as long while weights move, the ceiling is "
        f"{pacer.ceiling:g}, and moves are as slow as they get"
    )
