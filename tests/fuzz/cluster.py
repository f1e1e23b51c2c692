"""The target that is two daemons: bundles of a relay to its leader, and of a leader to its relay.

Each hears what the other node may say once its key is trusted, and what its own workers say. Owns
what must hold whatever that is: only RemoteProtocolError is raised, the invariants stand, and a
well-behaved group gets through an epoch afterwards at the daemon that leads.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from eplbd.core import messages as m
from eplbd.core.cluster import Address, Led, Relayed, RelayGone
from eplbd.core.events import AskPolicy, Event, Received
from eplbd.errors import RemoteProtocolError
from eplbd.wire.bundle import DOWN, UP
from eplbd.wire.messages import AGENT
from tests.fuzz import lives as begin
from tests.fuzz.dialogue import FRAMES_MAX, Said
from tests.fuzz.session import HONEST_EVERY, SETTINGS, Doorway, serve_after, turned
from tests.sim.nodes import Nodes

if TYPE_CHECKING:
    from collections.abc import Sequence

SPEAKERS = 8
"""By mouth: two workers and two relays of the leader, a relay that goes; two workers and the leader
of the relay. Mouths beyond say the same after some time."""
LEADER_SPEAKS = 7
MEMBERS_MAX = 1 << 12
LIVES = 4

M = TypeVar("M")


class Room:
    """A leader and a relay that were never introduced but by the dialogue."""

    def __init__(self) -> None:
        self.address = Address("tcp://leader:0", "key 0")
        self.leader = Doorway(self.address)
        self.relay = Doorway(Address("tcp://relay1", "key of 1"))

    def hear(self, said: Said) -> None:
        """Take one message at the daemon that the mouth speaks to."""
        if said.mouth >= SPEAKERS:
            self.leader.wait()
            self.relay.wait()
        match said.mouth % SPEAKERS:
            case 0 | 1 as place:
                self.leader.hear_from(b"hostile%d" % place, said.frames)
            case 2 | 3 as place:
                self._bundle(b"key of %d" % (place - 1), said.frames)
            case 4:
                self.leader.feed(RelayGone(b"key of 2"))
            case 5 | 6 as place:
                self.relay.hear_from(b"hostile%d" % place, said.frames)
            case _:
                self._orders(said.frames)

    def _bundle(self, key: bytes, frames: Sequence[bytes]) -> None:
        try:
            bundle = UP.decode(frames)
        except RemoteProtocolError:
            return
        self.leader.feed(Relayed(key, bundle.entries))

    def _orders(self, frames: Sequence[bytes]) -> None:
        try:
            bundle = DOWN.decode(frames)
        except RemoteProtocolError:
            return
        self.relay.feed(Led(self.address, bundle.entries))

    def check_bounds(self) -> None:
        """As of each by itself."""
        self.leader.check_bounds(MEMBERS_MAX)
        self.relay.check_bounds()


def take(data: bytes) -> int:
    """One dialogue; how many frames that took."""
    room, frames = begin.held(data, moments, Room)
    room.check_bounds()
    if zlib.crc32(data) % HONEST_EVERY == 0:
        serve_after(room.leader.node)
    return frames


# --- inputs to begin with -----------------------------------------------------------------------


@dataclass
class _Recorded(Nodes):
    """Two nodes; what each daemon hears is kept, under another group's name."""

    settings: object = SETTINGS  # type: ignore[assignment]  # the field of `World`, another default
    said: list[Said] = field(default_factory=list)
    ticked: float = 0.0

    def answer_policy(self) -> None:
        """Turn the map, as the target does."""
        ask: AskPolicy = self.proposals.popleft()
        self.feed(turned(ask))

    def feed(self, event: Event) -> None:
        """Keep what the leader hears."""
        match event:
            case Received(bytes() as peer, seq, message):
                self._keep(int(peer.split(b".")[0]), AGENT.encode(_renamed(message), seq))
            case Relayed(_, entries):
                renamed = [
                    replace(e, group="hostile", message=_renamed(e.message)) for e in entries
                ]
                self._keep(2, UP.encode(1, 1, renamed))
            case _:
                pass
        super().feed(event)

    def feed_relay(self, node: int, event: Event) -> None:
        """Keep what the relay hears."""
        match event:
            case Received(_, seq, message):
                self._keep(5, AGENT.encode(_renamed(message), seq))
            case Led(_, entries):
                renamed = [replace(entry, group="hostile") for entry in entries]
                self._keep(LEADER_SPEAKS, DOWN.encode(1, 1, renamed))
            case _:
                pass
        super().feed_relay(node, event)

    def _keep(self, mouth: int, frames: Sequence[bytes | memoryview]) -> None:
        late = self.now - self.ticked > 0.1
        if late:
            self.ticked = self.now
        if len(frames) <= FRAMES_MAX:
            self.said.append(Said(mouth + SPEAKERS * late, tuple(bytes(f) for f in frames)))


def _renamed(message: M) -> M:
    return replace(message, group="hostile") if isinstance(message, m.Hello) else message


@cache
def lives() -> list[list[Said]]:
    """What two daemons hear until an epoch has settled."""
    found = []
    for seed in range(LIVES):
        world = _Recorded(seed=seed)
        world.settle()
        found.append(world.said)
    return found


@cache
def moments() -> list[Room]:
    """How both stand in the course of the first life; the last moment is behind an epoch."""
    taken = begin.moments(lives()[0], Room)
    assert taken[-1].leader.settled, "a life that settles nothing begins nowhere"
    return taken


def phrases() -> list[Said]:
    """Messages of those lives."""
    return begin.phrases(lives())


def seeds() -> list[bytes]:
    """Beginnings and middles of those lives."""
    return begin.seeds(lives())
