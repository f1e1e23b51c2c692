"""The daemon's core: every group on this node, behind one method.

`step(event) -> effects` is all that a shell may touch. Owns which peer belongs to which group,
which groups are led here and which are relayed, and how the daemon ends. Knows no clock, socket,
file, thread or log.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from eplbd.core import messages as m
from eplbd.core.admission import no_room
from eplbd.core.alarms import Alarms
from eplbd.core.balancer import Balancer
from eplbd.core.cluster import (
    Entry,
    FromRelay,
    Led,
    NodeHeat,
    Relayed,
    RelayGone,
    Via,
    relay_of,
    shown,
)
from eplbd.core.commands import Commanded, OrdersRestored
from eplbd.core.downlinks import Downlinks
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
from eplbd.core.intake import Intake
from eplbd.core.obedience import obey, orders_of
from eplbd.core.questions import Questions
from eplbd.core.relays import Relays
from eplbd.core.session import refuse_hello
from eplbd.core.totals import COUNTED, Totals
from eplbd.core.views import Statistics
from eplbd.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eplbd.core.cluster import Address, Peer
    from eplbd.core.orders import Orders
    from eplbd.core.settings import Settings

COMPLAINTS_MAX = 1024
"""Peers whose first bad message is logged; after that many, bad messages are only counted."""


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
        self.relays = Relays(settings, cluster)
        self.intake = Intake()
        self.downlinks = Downlinks()
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
            case Received() | Garbled() | Unreachable() | Relayed() | RelayGone() | Led():
                self._spoken(event)
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
        self.out += self.relays.drain()
        return self.out

    # --- peers ----------------------------------------------------------------------------------

    def _spoken(self, event: Received | Garbled | Unreachable | Relayed | RelayGone | Led) -> None:
        match event:
            case Received(peer, seq, message):
                self._received(peer, seq, message)
            case Garbled(peer, reason):
                self.counts["garbled"] += 1
                self._complain(peer, "message refused", reason)
            case Unreachable(peer):
                self._unreachable(peer)
            case Relayed(relay, entries):
                self._relayed(relay, entries)
            case RelayGone(relay):
                self._relay_gone(relay)
            case Led():
                self.relays.led(event)

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
        if isinstance(message, m.HeatReport) and not self.intake.takes(name, self.now):
            self._complain(peer, "heat dropped", f"group {name!r} has had its share of the time")
            return
        try:
            if name in self.relays.groups:
                self.relays.groups[name].heard(rank, seq, message)
            else:
                self._heard(self.balancers[name], rank, seq, message)
        except RemoteProtocolError as error:
            self._reject(peer, str(error))
        if name in self.balancers:
            self._drain(self.balancers[name])

    def _heard(self, balancer: Balancer, rank: int, seq: int, message: m.FromAgent) -> None:
        session = balancer.group.sessions[rank]
        session.received(seq, self.now)
        balancer.heard(rank, message)
        session.took(message, self.now)

    def _hello(self, peer: Peer, seq: int, hello: m.Hello) -> None:
        led = self.balancers.get(hello.group)
        if isinstance(peer, bytes):
            leader = self.relays.leader_of(hello, led.group if led else None)
            if leader is not None:
                self._relay(peer, seq, hello, leader)
                return
            self.forget(self.relays.drop(hello.group))
        elif hello.group in self.relays.groups:
            leader = self.relays.groups[hello.group].leader
            self._refuse(peer, f"group {hello.group!r} is not led here but at {leader.endpoint}")
            return
        self._lead(peer, seq, hello)

    def _relay(self, peer: bytes, seq: int, hello: m.Hello, leader: Address) -> None:
        """Take up a rank of a group that another daemon leads."""
        reason = refuse_hello(hello) or no_room(self, hello, led=False)
        if reason:
            self._refuse(peer, reason)
            return
        led = self.balancers.pop(hello.group, None)
        if led is not None:
            self.forget(led.group.peers())
        self.members[peer] = (hello.group, hello.rank)
        self.forget(self.relays.hello(peer, seq, hello, leader))

    def _lead(self, peer: Peer, seq: int, hello: m.Hello) -> None:
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
        reason = balancer.group.elsewhere(peer, hello.rank)
        if reason:
            self._refuse(peer, reason)
            return
        replaced = balancer.group.hello(peer, hello, seq)
        if replaced is not None:
            self.members.pop(replaced, None)
        session = balancer.group.sessions.get(hello.rank)
        if session is not None and session.peer == peer:
            self.members[peer] = (hello.group, hello.rank)
            if self.cluster is not None and hello.rank == 0:
                self.out.append(Send(peer, m.Door(self.cluster.endpoint, self.cluster.key)))
        else:
            self.counts["rejected"] += 1
        self._drain(balancer)

    def _new_group(self, peer: Peer, hello: m.Hello, old: Balancer | None) -> Balancer | None:
        """Take a group up, anew if it restarted; None if that is refused."""
        reason = refuse_hello(hello) or no_room(self, hello, led=True)
        if reason:
            self._refuse(peer, reason)
            return None
        if old is not None:
            self._note("warning", "group restarted", group=hello.group)
            self.forget(old.group.peers())
        stored = self.stored.get(hello.group)
        # The ranks of a new life have obeyed nobody yet: only here is it known what was led under.
        led_under = max(stored.term if stored else 0, old.group.term if old else 0)
        kept = old.kept if old else stored
        balancer = Balancer(hello, self.settings, stored_term=led_under, kept=kept, now=self.now)
        self.balancers[hello.group] = balancer
        take_orders(balancer, orders_of(self.orders, hello.group))
        return balancer

    def _refuse(self, peer: Peer, reason: str) -> None:
        self.out.append(Send(peer, m.Refused(reason)))
        self._reject(peer, reason, "worker refused")

    def _reject(self, peer: Peer, reason: str, event: str = "message refused") -> None:
        self.counts["rejected"] += 1
        self._complain(peer, event, reason)

    def forget(self, peers: Iterable[Peer]) -> None:
        """No message of these belongs to a group any more."""
        for peer in peers:
            self.members.pop(peer, None)

    def _unreachable(self, peer: bytes) -> None:
        member = self.members.get(peer)
        if member is not None and member[0] in self.balancers:
            name, rank = member
            self.balancers[name].group.lost(rank, "unreachable")
            self._drain(self.balancers[name])

    # --- other nodes ----------------------------------------------------------------------------

    def _relayed(self, relay: bytes, entries: Sequence[Entry]) -> None:
        self.downlinks.heard(relay, self.now)
        for entry in entries:
            # What comes up is agents' and relays' alone: the codec took nothing else.
            message = cast("FromRelay", entry.message)
            if isinstance(message, NodeHeat):
                self._node_heat(relay, entry.group, message)
            else:
                self._received(Via(relay, entry.group, entry.rank), entry.seq, message)

    def _node_heat(self, relay: bytes, name: str, heat: NodeHeat) -> None:
        """Book what ranks report that have sessions through this relay; nothing if one has not."""
        balancer, ranks = self.balancers.get(name), heat.ranks.tolist()
        if balancer is None or any(Via(relay, name, rank) not in self.members for rank in ranks):
            self.counts["unknown"] += 1
            return
        sessions = [balancer.group.sessions[rank] for rank in ranks]
        for session in sessions:
            session.last_heard = self.now
        try:
            balancer.heard_node(heat)
        except RemoteProtocolError as error:
            self._reject(sessions[0].peer, str(error))
        else:
            for session in sessions:
                session.reported(self.now)
        self._drain(balancer)

    def _relay_gone(self, relay: bytes) -> None:
        self.downlinks.gone(relay)
        for balancer in self.balancers.values():
            for rank, session in balancer.group.sessions.items():
                if relay_of(session.peer) == relay:
                    balancer.group.lost(rank, "unreachable")
            self._drain(balancer)

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
        for balancer in self.questions.in_turn(self.balancers.values()):
            balancer.tick(now, self.balancers.values())
            self.questions.watch(balancer)
            if not self.stopping:
                self.questions.ask(balancer)
            self.questions.hold_to_promises(balancer)
            self.out += self.questions.drain()
            self._drain(balancer)
        self.forget(self.relays.tick(now))
        self.out += self.downlinks.nod(now, self.settings.session)
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
        self.relays.reconfigure(settings)
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
            excess=self.intake.refused,
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
        assert not self.balancers.keys() & self.relays.groups.keys()
        for peer, (name, rank) in self.members.items():
            if name in self.relays.groups:
                assert self.relays.groups[name].peers[rank] == peer
            else:
                assert self.balancers[name].group.sessions[rank].peer == peer
        for balancer in self.balancers.values():
            if balancer.group.leader is not None:
                balancer.group.leader.check()
