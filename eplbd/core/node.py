"""The daemon's core: every group on this node, behind one method.

`step(event) -> effects` is all that a shell may touch. Owns which peer belongs to which group,
which answer belongs to which request, when a policy is suspended, and how the daemon ends. Knows no
clock, socket, file, thread or log.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eplbd.core import beside
from eplbd.core import messages as m
from eplbd.core.alarms import Alarms
from eplbd.core.balancer import Balancer
from eplbd.core.breaker import Breaker
from eplbd.core.cluster import shown
from eplbd.core.commands import Commanded, OrdersRestored
from eplbd.core.errand import take_orders
from eplbd.core.events import (
    Effect,
    Event,
    Garbled,
    Note,
    PersistFailed,
    PolicyAnswered,
    PolicyFailed,
    Received,
    Reconfigured,
    RememberFault,
    Restored,
    Send,
    Stop,
    Stopping,
    Tick,
    Unreachable,
)
from eplbd.core.obedience import obey, orders_of
from eplbd.core.session import refuse_hello
from eplbd.core.totals import COUNTED, Totals
from eplbd.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from eplbd.core.cluster import Address, Peer
    from eplbd.core.orders import Orders
    from eplbd.core.settings import Settings

SUSPENDED = "policy suspended, hold takes over"

GROUPS_MAX = 64
"""More EP groups than this on one node are a mistake or an attack."""

COMPLAINTS_MAX = 1024
"""Peers whose first bad message is logged; after that many, bad messages are only counted."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since start, and what is there now."""

    groups: int
    workers: int
    unknown: int
    garbled: int
    rejected: int
    gaps: int
    repeats: int
    not_stored: int
    """Settled placements that the state directory refused."""
    suspended: bool
    shadows_suspended: tuple[str, ...]


class Node:
    """All groups of one daemon.

    cluster: where other nodes reach this daemon; None if it keeps to its own.
    """

    def __init__(self, settings: Settings, cluster: Address | None = None) -> None:
        self.settings = settings
        self.cluster = cluster
        self.now = 0.0
        self.balancers: dict[str, Balancer] = {}
        self.members: dict[Peer, tuple[str, int]] = {}
        self.stored: dict[str, Restored] = {}
        self.orders: dict[str, Orders] = {}
        """By group; those of "" hold for every group."""
        self.requests: dict[int, str] = {}
        self.request = 0
        self.breaker = Breaker(settings.policy.failures_until_suspended)
        self.suspended_for = ""
        """Why the policy is suspended; the newest reason once it is not any more."""
        self.alarms = Alarms()
        self.shadow_requests: dict[int, tuple[str, str]] = {}
        """Group and policy of every question to a shadow."""
        self.shadow_breakers = self._new_breakers(settings)
        self.counts: Counter[str] = Counter()
        self.results: Counter[tuple[str, str]] = Counter()
        """What came of questions, by policy and outcome: ok, or that of `PolicyFailed`."""
        self.totals: dict[str, Totals] = {}
        """By group, over all its lives."""
        self.complained: set[Peer] = set()
        self.stopping = False
        self.out: list[Effect] = []

    def step(self, event: Event) -> list[Effect]:
        """Take one event, return what must be done, in order."""
        self.out = []
        match event:
            case Tick(now):
                self._tick(now)
            case Received(peer, seq, message):
                self._received(peer, seq, message)
            case Garbled(peer, reason):
                self.counts["garbled"] += 1
                self._complain(peer, "message refused", reason)
            case Unreachable(peer):
                self._unreachable(peer)
            case PolicyAnswered():
                self._answered(event)
            case PolicyFailed():
                self._failed(event)
            case PersistFailed(group, reason):
                self.counts["not stored"] += 1
                self._note("error", "placement not stored", group=group, reason=reason)
            case Restored(group):
                self.stored[group] = event
            case Reconfigured(settings, policies):
                self._reconfigured(settings, policies=policies)
            case Commanded() | OrdersRestored():
                obey(self, event)
            case Stopping():
                self._stopping()
        return self.out

    # --- peers ----------------------------------------------------------------------------------

    def _received(self, peer: Peer, seq: int, message: m.FromAgent) -> None:
        if isinstance(message, m.Hello):
            self._hello(peer, seq, message)
            return
        member = self.members.get(peer)
        if member is None:
            self.counts["unknown"] += 1
            self.out.append(Send(peer, m.Greet()))
            return
        name, rank = member
        balancer = self.balancers[name]
        session = balancer.group.sessions[rank]
        session.received(seq, self.now)
        try:
            balancer.heard(rank, message)
        except RemoteProtocolError as error:
            self.counts["rejected"] += 1
            self._complain(peer, "message refused", str(error))
        else:
            session.took(message, self.now)
        self._drain(balancer)

    def _hello(self, peer: Peer, seq: int, hello: m.Hello) -> None:
        balancer = self.balancers.get(hello.group)
        if balancer is None or hello.incarnation > balancer.group.incarnation:
            balancer = self._new_group(peer, hello, balancer)
            if balancer is None:
                return
        elif hello.incarnation < balancer.group.incarnation:
            reason = f"group {hello.group!r} has restarted since; stop this worker"
            balancer.group.refuse(peer, reason)
            self._drain(balancer)
            return
        replaced = balancer.group.hello(peer, hello, seq)
        if replaced is not None:
            self.members.pop(replaced, None)
        session = balancer.group.sessions.get(hello.rank)
        if session is not None and session.peer == peer:
            self.members[peer] = (hello.group, hello.rank)
        self._drain(balancer)

    def _new_group(self, peer: Peer, hello: m.Hello, old: Balancer | None) -> Balancer | None:
        """Take a group up, anew if it restarted; None if that is refused."""
        reason = refuse_hello(hello)
        if not reason and old is None and len(self.balancers) >= GROUPS_MAX:
            reason = f"this daemon already serves {GROUPS_MAX} groups"
        if reason:
            self.counts["rejected"] += 1
            self.out.append(Send(peer, m.Refused(reason)))
            self._complain(peer, "worker refused", reason)
            return None
        if old is not None:
            self._note("warning", "group restarted", group=hello.group)
            for gone in old.group.peers():
                self.members.pop(gone, None)
        stored = self.stored.get(hello.group)
        # The ranks of a new life have obeyed nobody yet: only here is it known what was led under.
        led_under = max(stored.term if stored else 0, old.group.term if old else 0)
        kept = old.kept if old else stored
        balancer = Balancer(hello, self.settings, stored_term=led_under, kept=kept, now=self.now)
        self.balancers[hello.group] = balancer
        take_orders(balancer, orders_of(self.orders, hello.group))
        return balancer

    def _unreachable(self, peer: Peer) -> None:
        member = self.members.get(peer)
        if member is not None:
            name, rank = member
            self.balancers[name].group.lost(rank, "unreachable")
            self._drain(self.balancers[name])

    # --- policies -------------------------------------------------------------------------------

    def _ask(self, balancer: Balancer) -> None:
        if self.stopping or self.breaker.suspended or self.requests:
            return
        if balancer.wants_policy(self.settings.policy.name, self.request + 1):
            self.request += 1
            self.requests[self.request] = balancer.group.name

    def _asked_by(self, request: int) -> Balancer | None:
        name = self.requests.pop(request, None)
        return self.balancers.get(name) if name is not None else None

    def _answered(self, event: PolicyAnswered) -> None:
        if event.request in self.shadow_requests:
            self._shadow_answered(event)
            return
        balancer = self._asked_by(event.request)
        if balancer is None:
            return
        if balancer.proposed(event):
            self.breaker.succeeded()
            self.results[self.settings.policy.name, "ok"] += 1
        else:
            self._policy_at_fault("invalid", balancer.cycle.tally.reason if balancer.cycle else "")
        self._drain(balancer)

    def _failed(self, event: PolicyFailed) -> None:
        if event.request in self.shadow_requests:
            self._shadow_failed(event)
            return
        balancer = self._asked_by(event.request)
        self._policy_at_fault(event.outcome, event.detail)
        if balancer is not None:
            balancer.refused(f"policy {event.outcome}", "failed", event.duration_s)
            self._drain(balancer)

    def _policy_at_fault(self, outcome: str, detail: str) -> None:
        name = self.settings.policy.name
        self.results[name, outcome] += 1
        self._note("warning", "policy failed", policy=name, outcome=outcome, detail=detail)
        self.out.append(RememberFault(name, outcome, detail))
        if self.breaker.failed():
            failures = self.settings.policy.failures_until_suspended
            self.suspended_for = f"{name}: {failures} failures in a row, the last: {outcome}"
            self._note("error", SUSPENDED, policy=name, failures=failures)

    def _hold_to_promises(self, balancer: Balancer) -> None:
        """Suspend a policy whose moves do not bring what they were made for."""
        limit, gains = self.settings.alarms.losing_cycles, balancer.gains
        if not limit or gains.broken < limit or not self.breaker.trip():
            return
        name = self.settings.policy.name
        self.suspended_for = (
            f"{name}: {gains.broken} rebalances of group {balancer.group.name} in a row fell short "
            f"of their gain, the last with {gains.realised:.4f} of {gains.predicted:.4f}"
        )
        self._note("error", SUSPENDED, policy=name, reason=self.suspended_for)
        self.out.append(RememberFault(name, "gain", self.suspended_for))

    def trust(self) -> None:
        """Forget what the policy did wrong: it may be asked again."""
        self.breaker = Breaker(self.settings.policy.failures_until_suspended)
        for balancer in self.balancers.values():
            balancer.gains.forgive()

    # --- shadows --------------------------------------------------------------------------------

    @staticmethod
    def _new_breakers(settings: Settings) -> dict[str, Breaker]:
        limit = settings.policy.failures_until_suspended
        return {name: Breaker(limit) for name in settings.policy.shadow}

    def _ask_shadow(self, balancer: Balancer) -> None:
        if self.stopping:
            return
        name = beside.ask(balancer, self.request + 1)
        if name:
            self.request += 1
            self.shadow_requests[self.request] = (balancer.group.name, name)

    def _shadow_answered(self, event: PolicyAnswered) -> None:
        group, name = self.shadow_requests.pop(event.request)
        balancer = self.balancers[group]
        fault = ""
        if balancer.shadows is not None:
            fault = balancer.shadows.answered(name, event, balancer.pacer.round_cost_s)
        if fault:
            self._shadow_at_fault(name, "invalid", fault)
        elif name in self.shadow_breakers:
            self.shadow_breakers[name].succeeded()
            self.results[name, "ok"] += 1

    def _shadow_failed(self, event: PolicyFailed) -> None:
        group, name = self.shadow_requests.pop(event.request)
        balancer = self.balancers[group]
        if balancer.shadows is not None:
            balancer.shadows.failed(name, event.request, f"policy {event.outcome}")
        self._shadow_at_fault(name, event.outcome, event.detail)

    def _shadow_at_fault(self, name: str, outcome: str, detail: str) -> None:
        self.results[name, outcome] += 1
        self._note("warning", "shadow failed", policy=name, outcome=outcome, detail=detail)
        self.out.append(RememberFault(name, outcome, detail))
        breaker = self.shadow_breakers.get(name)
        if breaker is not None and breaker.failed():
            self._note("error", "shadow suspended", policy=name, failures=breaker.limit)

    # --- life -----------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if now < self.now:
            raise LocalProtocolError(f"time went back from {self.now} to {now}")
        self.now = now
        watched = [name for name, held in self.shadow_breakers.items() if not held.suspended]
        for balancer in self.balancers.values():
            balancer.tick(now)
            beside.watch(balancer, watched)
            self._ask(balancer)
            self._ask_shadow(balancer)
            self._hold_to_promises(balancer)
            self._drain(balancer)
        self.out.extend(self.alarms.look(self, now))
        if self.stopping and not any(b.group.leader for b in self.balancers.values()):
            self.out.append(Stop())

    def _stopping(self) -> None:
        self.stopping = True
        for balancer in self.balancers.values():
            balancer.stopping = True
            balancer.group.give_up("the daemon stops")
            self._drain(balancer)

    def _reconfigured(self, settings: Settings, *, policies: bool) -> None:
        changed = policies or settings.policy != self.settings.policy
        self.settings = settings
        if changed:
            self.trust()
            self.shadow_breakers = self._new_breakers(settings)
        for balancer in self.balancers.values():
            balancer.reconfigure(settings)

    def drain_all(self) -> None:
        """Take what is to be done for every group."""
        for balancer in self.balancers.values():
            self._drain(balancer)

    def _drain(self, balancer: Balancer) -> None:
        effects, name = balancer.drain(), balancer.group.name
        for effect in effects:
            if isinstance(effect, COUNTED):
                self.totals[name] = self.totals.get(name, Totals()).after(effect, self.now)
        self.out.extend(effects)

    def _complain(self, peer: Peer, event: str, reason: str) -> None:
        """Log a peer's first offence; all are counted."""
        if peer not in self.complained and len(self.complained) < COMPLAINTS_MAX:
            self.complained.add(peer)
            self._note("warning", event, peer=shown(peer), reason=reason)

    def _note(self, level: str, event: str, **fields: object) -> None:
        self.out.append(Note(level, event, fields))

    def statistics(self) -> Statistics:
        """Return the counts for metrics and tests."""
        sessions = [s for b in self.balancers.values() for s in b.group.sessions.values()]
        return Statistics(
            groups=len(self.balancers),
            workers=len(self.members),
            unknown=self.counts["unknown"],
            garbled=self.counts["garbled"],
            rejected=self.counts["rejected"],
            gaps=sum(s.gaps for s in sessions),
            repeats=sum(s.repeats for s in sessions),
            not_stored=self.counts["not stored"],
            suspended=self.breaker.suspended,
            shadows_suspended=tuple(
                name for name, breaker in self.shadow_breakers.items() if breaker.suspended
            ),
        )

    def check(self) -> None:
        """Assert the invariants of everything below; tests call it after each step."""
        for peer, (name, rank) in self.members.items():
            assert self.balancers[name].group.sessions[rank].peer == peer
        for balancer in self.balancers.values():
            if balancer.group.leader is not None:
                balancer.group.leader.check()
