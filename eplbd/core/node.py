"""The daemon's core: every group on this node, behind one method.

`step(event) -> effects` is all that a shell may touch. Owns which peer belongs to which group,
which groups are led here and which are relayed, and how the daemon ends. Knows no clock, socket,
file, thread or log.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eplbd.core import messages as m
from eplbd.core.alarms import Alarms
from eplbd.core.balancer import Balancer
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
    Restored,
    Send,
    Stop,
    Stopping,
    Tick,
    Unreachable,
)
from eplbd.core.obedience import obey, orders_of
from eplbd.core.questions import Questions
from eplbd.core.session import refuse_hello
from eplbd.core.totals import COUNTED, Totals
from eplbd.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from eplbd.core.cluster import Address, Peer
    from eplbd.core.orders import Orders
    from eplbd.core.settings import Settings

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
        self.questions = Questions(settings)
        self.alarms = Alarms()
        self.counts: Counter[str] = Counter()
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
            case PolicyAnswered() | PolicyFailed():
                self._took(event)
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

    def _took(self, event: PolicyAnswered | PolicyFailed) -> None:
        balancer = self.questions.took(event, self.balancers)
        self.out += self.questions.drain()
        if balancer is not None:
            self._drain(balancer)

    def trust(self) -> None:
        """Forget what the policy did wrong: it may be asked again."""
        self.questions.trust(self.balancers.values())

    # --- life -----------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if now < self.now:
            raise LocalProtocolError(f"time went back from {self.now} to {now}")
        self.now = now
        for balancer in self.balancers.values():
            balancer.tick(now)
            self.questions.watch(balancer)
            if not self.stopping:
                self.questions.ask(balancer)
            self.questions.hold_to_promises(balancer)
            self.out += self.questions.drain()
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
        anew = policies or settings.policy != self.settings.policy
        self.settings = settings
        self.questions.reconfigure(settings, self.balancers.values(), anew=anew)
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
            suspended=self.questions.breaker.suspended,
            shadows_suspended=tuple(
                name
                for name, breaker in self.questions.shadow_breakers.items()
                if breaker.suspended
            ),
        )

    def check(self) -> None:
        """Assert the invariants of everything below; tests call it after each step."""
        for peer, (name, rank) in self.members.items():
            assert self.balancers[name].group.sessions[rank].peer == peer
        for balancer in self.balancers.values():
            if balancer.group.leader is not None:
                balancer.group.leader.check()
