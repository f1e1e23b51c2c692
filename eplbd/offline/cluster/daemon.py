"""One daemon: a real `Node`, the real codecs and bundles, in a shell that has simulated time.

Owns the turns that the daemon's loop would take, and the CPU time of decoding, stepping and
encoding, which is all that is measured. Must not know the network's ways.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import thread_time
from typing import TYPE_CHECKING

from eplbd.core import cluster as c
from eplbd.core import events as e
from eplbd.core.node import Node
from eplbd.runtime.bundles import GARBLED, REPLAYED, TOO_LARGE, VERSION, Bundles, Way
from eplbd.runtime.complaints import Complaints
from eplbd.wire.limits import MAX_MESSAGE_BYTES
from eplbd.wire.messages import AGENT, LEADER

if TYPE_CHECKING:
    from eplbd.core.settings import Settings
    from eplbd.offline.cluster.loop import Loop

TICK_S = 0.05
"""As the daemon's."""

WAKE_S = 2e-4
"""From a message's arrival to the turn that takes it; what arrives meanwhile is taken with it."""

BATCH = 64
"""As the daemon's: what has arrived shares one tick."""

Frames = Sequence[bytes | memoryview]


@dataclass(slots=True)
class Meter:
    """What a daemon has done so far. cpu_s: by what was taken; bytes: to and from other hosts."""

    cpu_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    events: Counter[str] = field(default_factory=Counter)
    longest_turn_s: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Letter:
    """Frames that came: of a local peer, or of another daemon, which has proved its key."""

    sender: bytes
    frames: Frames
    leader: c.Address | None = None
    """Who sent it, where that is the leader."""
    local: bool = True


@dataclass(frozen=True, slots=True)
class Ways:
    """What a daemon's effects lead to.

    to_rank: takes a local peer and frames. to_node: takes the key of a daemon and frames, and tells
    whether there is a way. seen: takes any effect, once it was performed.
    """

    to_rank: Callable[[bytes, Frames], None]
    to_node: Callable[[Way, bytes, Frames], bool]
    seen: Callable[[e.Effect], None]


class Daemon:
    """A daemon that may be stopped and started. clock: this host's, from simulated time.

    busy: whether what it says leaves only when the CPU time that it took has passed; then a run
    depends on the machine, and is no longer the same each time.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        address: c.Address,
        ways: Ways,
        clock: Callable[[float], float],
        *,
        busy: bool = False,
    ) -> None:
        self._loop, self._settings, self._ways, self._clock = loop, settings, ways, clock
        self.address = address
        self._busy = busy
        self._free_at = 0.0
        self.node: Node | None = None
        self.meter = Meter()
        self._inbox: deque[Letter] = deque()
        self._awake = False
        loop.after(TICK_S, self._tick)

    # --- life -----------------------------------------------------------------------------------

    def start(self, kept: Mapping[str, e.Persist]) -> None:
        """Begin with what was kept of an earlier life."""
        self.node = Node(self._settings, self.address)
        self._seqs: Counter[bytes] = Counter()
        self._complaints = Complaints((GARBLED, VERSION, REPLAYED, TOO_LARGE), self._ways.seen)
        self._bundles = Bundles(MAX_MESSAGE_BYTES, self._complaints)
        restored = [
            e.Restored(name, p.term, p.epoch, p.placement, p.likeness) for name, p in kept.items()
        ]
        self.take(*restored)

    def stop(self) -> None:
        """SIGKILL: what was on the way to it is gone."""
        self.node = None
        self._inbox.clear()

    def refused(self) -> Mapping[str, int]:
        """Bundles that were not taken, by reason."""
        return self._complaints.counts

    def _tick(self) -> None:
        self._loop.after(TICK_S, self._tick)
        self.take()

    # --- turns ----------------------------------------------------------------------------------

    def arrived(self, letter: Letter) -> None:
        """Frames are there."""
        if self.node is None:
            return
        self._inbox.append(letter)
        self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._loop.at(max(self._loop.now + WAKE_S, self._free_at), self._turn)

    def _turn(self) -> None:
        self._awake = False
        batch = [self._inbox.popleft() for _ in range(min(BATCH, len(self._inbox)))]
        if self._inbox:
            self._wake()
        if batch:
            self._run(batch, ())

    def take(self, *events: e.Event) -> None:
        """Take what does not come over a socket."""
        self._run((), events)

    def _run(self, batch: Sequence[Letter], events: Sequence[e.Event]) -> None:
        """One turn, measured; what it brought is performed afterwards."""
        if self.node is None:
            return
        turn = Turn(self.node, self._bundles, self._seqs, self.meter)
        turn.step("tick", e.Tick(self._clock(self._loop.now)))
        for letter in batch:
            turn.open(letter)
        for event in events:
            turn.step(type(event).__name__, event)
        turn.close()
        if self._busy:
            self._free_at = max(self._free_at, self._loop.now) + turn.lasted_s
            self._loop.at(self._free_at, lambda: self._perform(turn))
        else:
            self._perform(turn)

    def _perform(self, turn: Turn) -> None:
        for peer, frames in turn.to_ranks:
            self._ways.to_rank(peer, frames)
        gone = []
        for way, key, frames in turn.to_nodes:
            if self._ways.to_node(way, key, frames):
                self.meter.sent_bytes += sum(map(len, frames))
            elif way is Way.DOWN:
                gone.append(c.RelayGone(key))
        for effect in turn.effects:
            self._ways.seen(effect)
        if gone:
            self.take(*gone)


class Turn:
    """What is decoded, stepped and encoded in one go."""

    def __init__(self, node: Node, bundles: Bundles, seqs: Counter[bytes], meter: Meter) -> None:
        self._node, self._bundles, self._seqs, self._meter = node, bundles, seqs, meter
        self.to_ranks: list[tuple[bytes, Frames]] = []
        self.to_nodes: list[tuple[Way, bytes, Frames]] = []
        self.effects: list[e.Effect] = []
        self._entries: dict[tuple[Way, bytes], list[c.Entry]] = {}
        self._began = self._last = thread_time()

    @property
    def lasted_s(self) -> float:
        """CPU time from the beginning to what was done last."""
        return self._last - self._began

    def open(self, letter: Letter) -> None:
        """Decode what came, and take it."""
        if letter.local:
            received = e.Received(letter.sender, *AGENT.decode(letter.frames))
            self.step(AGENT.tag(received.message), received)
            return
        self._meter.received_bytes += sum(map(len, letter.frames))
        way = Way.UP if letter.leader is None else Way.DOWN
        frames = [bytes(frame) for frame in letter.frames]  # no copy: they are bytes already
        entries = self._bundles.opened(way, letter.sender, "", frames)
        if entries is None:
            return
        kind = type(entries[0].message).__name__ if entries else "sign of life"
        if letter.leader is None:
            self.step(kind, c.Relayed(letter.sender, entries))
        else:
            self.step(kind, c.Led(letter.leader, entries))

    def step(self, kind: str, event: e.Event) -> None:
        """Step the core, encode what it says, and count the time since the last step as `kind`."""
        made = self._node.step(event)
        for effect in made:
            self._take(effect)
        self.effects += made
        self._meter.events[kind] += 1
        self._lap(kind)

    def _take(self, effect: e.Effect) -> None:
        match effect:
            case e.Send(bytes() as peer, message):
                self._seqs[peer] += 1
                self.to_ranks.append((peer, LEADER.encode(message, self._seqs[peer])))
            case e.Send(c.Via(relay, group, rank), message):
                entries = self._entries.setdefault((Way.DOWN, relay), [])
                entries.append(c.Entry(group, rank, 0, message))
            case c.Nod(relay):
                self._entries.setdefault((Way.DOWN, relay), [])
            case c.Up(leader, entries):
                self._entries.setdefault((Way.UP, leader.key.encode()), []).extend(entries)
            case _:
                pass

    def close(self) -> None:
        """Bundle what the turn had for other nodes."""
        for (way, key), entries in self._entries.items():
            for frames, inside in self._bundles.packed(way, key, entries):
                self._bundles.sent(way, frames, inside)
                self.to_nodes.append((way, key, frames))
        self._lap("bundling")
        self._meter.longest_turn_s = max(self._meter.longest_turn_s, self.lasted_s)

    def _lap(self, kind: str) -> None:
        now = thread_time()
        self._meter.cpu_s[kind] += now - self._last
        self._last = now
