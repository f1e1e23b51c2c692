"""The target that is a session: frames of eight peers, through the decoder, into one `Node`.

Owns what must hold of a daemon whatever its peers say: only RemoteProtocolError is raised, the
machines' own invariants stand after every step, what is counted per peer stays bounded, and a
well-behaved group that comes afterwards gets through an epoch.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core import messages as m
from eplbd.core.admission import GROUPS_MAX
from eplbd.core.cluster import Address, Entry, Up, Via
from eplbd.core.events import (
    AskPolicy,
    Effect,
    EpochEnded,
    Event,
    Garbled,
    PolicyAnswered,
    Received,
    Send,
    Tick,
)
from eplbd.core.node import COMPLAINTS_MAX, Node
from eplbd.core.overview import overview
from eplbd.core.settings import PolicySettings
from eplbd.errors import LocalProtocolError, RemoteProtocolError
from eplbd.wire import stream
from eplbd.wire.bundle import DOWN, UP
from eplbd.wire.messages import AGENT, LEADER
from tests.fuzz import lives as begin
from tests.fuzz.dialogue import Said
from tests.sim.world import QUICK, World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sim.rank import SimRank

PEERS = 8
"""Mouths below say something at once, those above after some time."""
PASSES_S = 0.1
HONEST_EVERY = 32
"""One input of so many, by its checksum, is followed by a well-behaved group."""

# A hostile group's placements may be refused; that suspends no policy here.
SETTINGS = replace(QUICK, policy=PolicySettings(failures_until_suspended=1 << 30))


def turned(ask: AskPolicy) -> PolicyAnswered:
    """A proposal that is valid wherever the present map is: every rank takes its neighbour's."""
    return PolicyAnswered(ask.request, np.roll(ask.current.slots, 1, axis=1), 0.01)


class Doorway:
    """A node and its shell without sockets: what the daemon does around `step`."""

    def __init__(self, cluster: Address | None = None) -> None:
        self.node = Node(SETTINGS, cluster)
        self.settled = 0
        self.feed(Tick(0.0))

    def __deepcopy__(self, memo: dict[int, object]) -> Doorway:
        for balancer in self.node.balancers.values():
            balancer.neighbours = ()  # a view of others, set anew by the next tick
        other = Doorway.__new__(Doorway)
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def hear(self, said: Said) -> None:
        """Take one message of one peer."""
        if said.mouth >= PEERS:
            self.wait()
        self.hear_from(b"hostile%d" % (said.mouth % PEERS), said.frames)

    def wait(self) -> None:
        """Let time pass."""
        self.feed(Tick(self.node.now + PASSES_S))

    def hear_from(self, peer: bytes, frames: Sequence[bytes]) -> None:
        """Take what a peer on the unix socket says."""
        try:
            self.feed(Received(peer, *AGENT.decode(frames)))
        except RemoteProtocolError as error:
            self.feed(Garbled(peer, str(error)))

    def feed(self, event: Event) -> None:
        """Step the node, and perform what that asks for."""
        effects = self.node.step(event)
        self.node.check()
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        try:
            told = stream.told(effect, 0.0)
            if told is not None:
                stream.payload(told)
            match effect:
                case Send(Via(_, group, rank), message):
                    DOWN.encode(1, 1, [Entry(group, rank, 0, message)])
                case Send(_, message):
                    LEADER.encode(message, 1)
                case Up(_, entries):
                    UP.encode(1, 1, entries)
                case _:
                    pass
        except LocalProtocolError:
            pass  # as the daemon: logged, and left
        if isinstance(effect, AskPolicy):
            self.feed(turned(effect))
            self.feed(Tick(self.node.now))  # with which its epochs begin
        self.settled += isinstance(effect, EpochEnded) and effect.outcome == "settled"

    def check_bounds(self, peers: int = PEERS) -> None:
        """Nothing that is kept per peer or per group grows with what was said."""
        node = self.node
        assert len(node.balancers) <= GROUPS_MAX
        assert len(node.complained) <= COMPLAINTS_MAX
        assert len(node.members) <= peers
        assert len(node.questions.asked) <= 1
        shown = stream.snapshot(overview(node), at_s=0.0, up_s=0.0, version="", host="")
        stream.payload(shown)


@dataclass
class Honest(World):
    """A group of three simulated ranks that does everything right, on a node that has a past."""

    settings: object = SETTINGS  # type: ignore[assignment]  # the field of `World`, another default
    past: Node | None = field(default=None)

    def start_daemon(self, *, stale: bool = False) -> None:
        """Take the node that is there."""
        super().start_daemon(stale=stale)
        if self.past is not None:
            self.node, self.now = self.past, self.past.now

    def perform(self, effect: Effect) -> None:
        """Leave alone what concerns others."""
        match effect:
            case Send(peer) if peer not in [self.peer(rank) for rank in range(self.shape.ranks)]:
                return
            case EpochEnded(group) if group != "sim":
                return
        super().perform(effect)

    def answer_policy(self) -> None:
        """Turn the map, whoever's it is."""
        self.feed(turned(self.proposals.popleft()))


def take(data: bytes) -> int:
    """One dialogue; how many frames that took."""
    doorway, frames = begin.held(data, moments, Doorway)
    doorway.check_bounds()
    if zlib.crc32(data) % HONEST_EVERY == 0:
        serve_after(doorway.node)
    return frames


def serve_after(node: Node) -> None:
    """Let a well-behaved group through an epoch; AssertionError where it does not get there."""
    Honest(past=node).settle()


# --- inputs to begin with -----------------------------------------------------------------------


class _Recorded(Honest):
    """A world whose ranks' messages are kept, under another group's name."""

    def __post_init__(self) -> None:
        self.said: list[tuple[float, int, m.FromAgent]] = []
        super().__post_init__()

    def feed(self, event: Event) -> None:
        if isinstance(event, Received):
            self.said.append((self.now, int(event.peer.split(b".")[0]), event.message))
        super().feed(event)


def _disturb(world: World, rank: SimRank, kind: int) -> None:
    match kind:
        case 1:
            rank.refuse_next = "no room"
        case 2:
            rank.outbox.append(m.Bye("it leaves"))
        case 3:
            world.hold_register(rank.rank)


def recorded(seed: int) -> list[Said]:
    """All that the ranks of one group say until an epoch or two have settled."""
    world = _Recorded(seed=seed, weighted=bool(seed % 2))
    world.settle()
    if seed % 4:
        _disturb(world, world.ranks[seed % 3], seed % 4)
        world.settle()
    sent = [0] * PEERS
    before, dialogue = 0.0, []
    for now, rank, message in world.said:
        hostile = replace(message, group="hostile") if isinstance(message, m.Hello) else message
        sent[rank] += 1
        frames = tuple(bytes(frame) for frame in AGENT.encode(hostile, sent[rank]))
        # As many ticks as there were, in longer ones.
        late = int(now / PASSES_S) - int(before / PASSES_S)
        dialogue.append(Said(rank + PEERS * (late > 0), frames))
        before = now
    return dialogue


@cache
def lives() -> list[list[Said]]:
    """Whole lives of a group, well-behaved but for what the fuzzer makes of them."""
    return [recorded(seed) for seed in range(8)]


@cache
def moments() -> list[Doorway]:
    """How a daemon stands in the course of the first life; the last moment is behind an epoch."""
    taken = begin.moments(lives()[0], Doorway)
    assert taken[-1].settled, "a life that settles nothing begins nowhere"
    return taken


def phrases() -> list[Said]:
    """Messages of those lives."""
    return begin.phrases(lives())


def seeds() -> list[bytes]:
    """Beginnings and middles of those lives."""
    return begin.seeds(lives())
