"""One EP group as its leader sees it: who is there, under which term, on which map.

    GATHERING -> RECOVERING -> READY <-> (a rank is missing) ; any -> FROZEN

Owns membership, the claim of a term and the running epoch. A group is READY when every rank has a
session, stands idle, and holds the same map: only then may an epoch begin. FROZEN is left by no
message: ranks that disagree on the map need the operator, and serving goes on with what each rank
has.

When to rebalance and why is `cycle.py`'s business. Must not know transport or clock.
"""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import TYPE_CHECKING

from eplbd.core import messages as m
from eplbd.core.cluster import relay_of
from eplbd.core.epoch import Answer
from eplbd.core.epoch import Phase as EpochPhase
from eplbd.core.events import Effect, Note, Send
from eplbd.core.leader import EpochLeader
from eplbd.core.messages import Standing
from eplbd.core.placement import validate
from eplbd.core.session import Session, refuse_hello, same_group
from eplbd.core.shares import as_shares
from eplbd.core.topology import Topology
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eplbd.core.cluster import Peer
    from eplbd.core.placement import Placement
    from eplbd.core.settings import Settings


LOOKS = 32
"""Times per allowed silence that the group looks for ranks that are silent."""


class Phase(enum.StrEnum):
    """Where the group stands."""

    GATHERING = "gathering"
    RECOVERING = "recovering"
    READY = "ready"
    FROZEN = "frozen"


class Group:
    """The members of one life of an EP group, and the epoch under way."""

    def __init__(self, hello: m.Hello, settings: Settings, *, stored_term: int, now: float) -> None:
        self.name, self.incarnation, self.shape = hello.group, hello.incarnation, hello
        self.settings = settings
        self.term = 0
        self.stored_term = stored_term
        self.epoch = self.lane = self.forward = self.at = 0
        self.issued = 0
        """Highest epoch number given out under this term; an aborted one is never used again."""
        self.placement: Placement | None = None
        self.topology: Topology | None = None
        self.sessions: dict[int, Session] = {}
        self.missing: set[int] = set(range(hello.ranks))
        """Ranks without a living session."""
        self.unsettled: set[int] = set(self.missing)
        """Ranks that have not said since their last `Hello` that they stand idle on our map."""
        self.stands: dict[int, m.Stands] = {}
        """Where each rank stood when it was asked under this term, until the map is known."""
        self.frozen = ""
        self.leader: EpochLeader | None = None
        self.now = now
        self.next_beat = self.next_look = 0.0
        self.out: list[Effect] = []

    @property
    def phase(self) -> Phase:
        """Derived, never stored."""
        if self.frozen:
            return Phase.FROZEN
        if self.missing:
            return Phase.GATHERING
        return Phase.RECOVERING if self.unsettled else Phase.READY

    # --- membership -----------------------------------------------------------------------------

    def hello(self, peer: Peer, hello: m.Hello, seq: int) -> Peer | None:
        """Take a member in, or refuse it; return the peer that it replaces, if any."""
        reason = refuse_hello(hello) or same_group(hello, self.shape)
        if reason:
            self.refuse(peer, reason)
            return None
        replaced = self.sessions.get(hello.rank)
        self.sessions[hello.rank] = Session(peer, hello, self.now, seq)
        if replaced:
            # What was said in a rank's name by whoever had taken it is forgotten with its session.
            self.forward = max(session.forward for session in self.sessions.values())
        self.missing.discard(hello.rank)
        self.unsettled.add(hello.rank)
        self.stands.pop(hello.rank, None)
        if self.leader:
            self.leader.back(hello.rank)
        highest = max(s.hello.term for s in self.sessions.values())
        if not self.missing and (not self.term or self.term < highest):
            self._claim(highest)
        elif self.term >= max(highest, 1):
            self._welcome(hello.rank)
        return replaced.peer if replaced and replaced.peer != peer else None

    def elsewhere(self, peer: Peer, rank: int) -> str:
        """Why a rank is not taken in by this way: it lives, and came by another; else empty."""
        held = self.sessions.get(rank)
        if held is None or rank in self.missing or relay_of(held.peer) == relay_of(peer):
            return ""
        return f"rank {rank} lives on {held.hello.node}, and is reached another way"

    def refuse(self, peer: Peer, reason: str) -> None:
        """Say why there is no session."""
        self.out.append(Send(peer, m.Refused(reason)))
        self.note("warning", "worker refused", reason=reason)

    def _claim(self, highest: int) -> None:
        """Lead under a term that no rank has seen."""
        self.term = max(self.stored_term, self.term, highest) + 1
        self._abandon("a newer term was claimed")
        members = [self.sessions[rank] for rank in range(self.shape.ranks)]
        # Two nodes may have one name; two daemons are two nodes.
        hosts = [(relay_of(member.peer), member.hello.node) for member in members]
        nodes = list(dict.fromkeys(hosts))
        node_of = tuple(nodes.index(host) for host in hosts)
        self.topology = Topology(self.shape.ranks, self.shape.slots_per_rank, node_of)
        self.stands.clear()
        self.unsettled = set(self.sessions)
        self.note("info", "group gathered", term=self.term, ranks=len(hosts), nodes=len(nodes))
        for rank in sorted(self.sessions):
            self._welcome(rank)

    def _welcome(self, rank: int) -> None:
        signs = self.settings.session
        welcome = m.Welcome(self.term, m.WIRE_VERSION, signs.heartbeat_s, signs.silence_s)
        self.send(rank, welcome)

    def lost(self, rank: int, why: str) -> None:
        """A rank fell silent, left, or became unreachable."""
        if rank in self.missing:
            return
        self.missing.add(rank)
        self.unsettled.add(rank)
        self.note("warning", "rank lost", rank=rank, reason=why)
        if self.leader:
            self.leader.lost(rank)
            self._flush()

    # --- what members say -----------------------------------------------------------------------

    def heard(self, rank: int, message: m.FromAgent) -> None:
        """Take a member's message that concerns map or epoch."""
        if rank in self.missing:
            self._returned(rank)
        match message:
            case m.Stands():
                self._stands(rank, message)
            case m.Pulse(forward=forward):
                self.forward = max(self.forward, forward)
            case m.Bye(reason):
                self.lost(rank, reason or "the worker left")
                return
            case _:
                pass
        if self.leader and isinstance(message, Answer | m.Stands):
            self.leader.forward = max(self.leader.forward, self.forward)
            self.leader.heard(rank, message)
            self._flush()

    def _returned(self, rank: int) -> None:
        """A silent rank speaks again in its old session: it says first where it stands."""
        self.missing.discard(rank)
        if self.leader:
            self.leader.back(rank)
        if self.term:
            self._welcome(rank)

    def _stands(self, rank: int, message: m.Stands) -> None:
        if message.term != self.term:
            return
        self.forward = max(self.forward, message.forward)
        self.lane = max(self.lane, message.lane)
        if self.placement is None:
            self.stands[rank] = self._lean(message)
            self._recover()
        elif message.standing is not Standing.IDLE and not self._runs(message.pending):
            # The epoch was closed without this rank: its register says abort, or nothing. Order of
            # arrival does not settle it: what began it may have come after a word that none had.
            self.send(rank, m.Abort(self.term, message.pending, "the epoch is over"))
        elif self.leader:
            return
        elif (message.epoch, message.digest) == (self.epoch, self.placement.digest):
            self.unsettled.discard(rank)
        elif message.epoch >= self.epoch or message.forward >= self.at:
            # Not merely said before the last flip and delivered after it.
            self.freeze(f"rank {rank} holds map {message.digest} of epoch {message.epoch}")

    def _runs(self, epoch: int) -> bool:
        return self.leader is not None and self.leader.epoch == epoch

    def _lean(self, message: m.Stands) -> m.Stands:
        """The message on one copy of its map: a thousand of two megabytes each say the same."""
        for other in self.stands.values():
            if other.digest == message.digest:
                return replace(message, slots=other.slots, parts=other.parts)
        return message

    def _recover(self) -> None:
        """Take the map over from the ranks, once all of them stand idle on one."""
        stands = self.stands.values()
        if len(stands) < self.shape.ranks or any(s.standing is not Standing.IDLE for s in stands):
            return
        held = {(s.epoch, s.digest) for s in stands}
        if len(held) > 1:
            self.freeze(f"ranks hold different maps: {sorted(held)}")
            return
        assert self.topology is not None
        newest = next(iter(stands))
        try:
            placement = validate(
                newest.slots,
                experts=self.shape.experts,
                topology=self.topology,
                layers=self.shape.layers,
                allow_duplicates=True,
                shares=None if newest.parts is None else as_shares(newest.parts),
            )
        except PlacementError as error:
            self.freeze(f"the ranks' own map cannot be served: {error}")
            return
        if placement.digest != newest.digest:
            self.freeze(f"rank map has digest {placement.digest}, announced {newest.digest}")
            return
        self.placement, self.epoch = placement, newest.epoch
        self.issued = newest.epoch
        self.unsettled.clear()
        self.stands.clear()
        self.note("info", "group ready", term=self.term, epoch=self.epoch, digest=newest.digest)

    def freeze(self, reason: str) -> None:
        """Keep the maps as they are until the group restarts."""
        if not self.frozen:
            self.frozen = reason
            self.note("error", "placement frozen", reason=reason)
            self.give_up(f"frozen: {reason}")

    # --- the epoch under way --------------------------------------------------------------------

    def begin(self, prepares: Sequence[m.Prepare], stride: int) -> None:
        """Start an epoch; only in READY, only one at a time."""
        assert self.phase is Phase.READY
        assert self.leader is None
        self.issued = prepares[0].epoch
        self.leader = EpochLeader(
            prepares, self.settings.epoch, forward=self.forward, stride=stride, now=self.now
        )
        self._flush()

    def end(self, target: Placement) -> EpochLeader:
        """Close the books of an ended epoch; `target` is in force if it settled."""
        leader, self.leader = self.leader, None
        assert leader is not None
        assert leader.ended
        if leader.lane_broken:
            self.lane += 1
        if leader.phase is EpochPhase.SETTLED:
            self.placement, self.epoch, self.at = target, leader.epoch, leader.at
            if leader.diverged:
                self.freeze(f"after epoch {leader.epoch} ranks hold other maps: {leader.diverged}")
        return leader

    def give_up(self, reason: str) -> None:
        """Abandon the epoch under way, if there is one and that is still possible."""
        if self.leader:
            self.leader.give_up(reason)
            self._flush()

    def _abandon(self, reason: str) -> None:
        if self.leader:
            self.note("warning", "epoch abandoned", epoch=self.leader.epoch, reason=reason)
        self.leader = None
        self.placement = None

    def _flush(self) -> None:
        assert self.leader is not None
        say, self.leader.say = self.leader.say, []
        for rank, message in say:
            self.send(rank, message)

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Beat, notice silence, drive the epoch."""
        self.now = now
        if now >= self.next_look:
            self._look(self.settings.session.silence_s)
        if now >= self.next_beat:
            self.next_beat = now + self.settings.session.heartbeat_s
            self._beat()
        if self.leader:
            self.leader.forward = max(self.leader.forward, self.forward)
            self.leader.tick(now)
            self._flush()

    def _look(self, silence_s: float) -> None:
        """Find who has fallen silent; not with every tick, since there is one per message."""
        self.next_look = self.now + silence_s / LOOKS
        for rank, session in self.sessions.items():
            if rank not in self.missing and self.now - session.last_heard > silence_s:
                self.lost(rank, f"silent for {silence_s} s")

    def _beat(self) -> None:
        if not self.term:
            return
        beat = m.Beat(self.term)  # one for all: what is told to many is encoded once
        for rank in self.sessions:
            if rank in self.missing:
                continue
            if rank in self.unsettled and not self.leader:
                self._welcome(rank)
            else:
                self.send(rank, beat)

    def send(self, rank: int, message: m.FromLeader) -> None:
        """Queue a message to a rank that has a session."""
        if rank in self.sessions:
            self.out.append(Send(self.sessions[rank].peer, message))

    def note(self, level: str, event: str, **fields: object) -> None:
        """Queue a log line."""
        self.out.append(Note(level, event, {"group": self.name, **fields}))

    def peers(self) -> Iterator[Peer]:
        """Every peer that has a session here."""
        return (session.peer for session in self.sessions.values())
