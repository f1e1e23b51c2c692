"""One daemon: a real `Node` and the real codec, in a shell that has simulated time.

Owns the turns that the daemon's loop would take, and the CPU time of decoding, stepping and
encoding, which is all that is measured. Must not know the network's ways.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import thread_time
from typing import TYPE_CHECKING

from eplbd.core import events as e
from eplbd.core.node import Node
from eplbd.wire.messages import AGENT, LEADER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplbd.core.settings import Settings
    from eplbd.offline.cluster.loop import Loop

TICK_S = 0.05
"""As the daemon's."""

WAKE_S = 2e-4
"""From a message's arrival to the turn that takes it; what arrives meanwhile is taken with it."""

BATCH = 64
"""As the daemon's: what has arrived shares one tick."""

Frames = list[bytes | memoryview]


@dataclass(slots=True)
class Meter:
    """What a daemon has done so far. cpu_s: by what was taken."""

    cpu_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    events: Counter[str] = field(default_factory=Counter)
    longest_turn_s: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ways:
    """What a daemon's effects lead to. to_rank: takes a local peer and frames. seen: any effect."""

    to_rank: Callable[[bytes, Frames], None]
    seen: Callable[[e.Effect], None]


class Daemon:
    """A daemon that may be stopped and started. clock: this host's, from simulated time.

    busy: whether what it says leaves only when the CPU time that it took has passed; then a run is
    as fast as the machine, and no longer the same each time.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        ways: Ways,
        clock: Callable[[float], float],
        *,
        busy: bool = False,
    ) -> None:
        self._loop, self._settings, self._ways, self._clock = loop, settings, ways, clock
        self._busy = busy
        self._free_at = 0.0
        self.node: Node | None = None
        self.meter = Meter()
        self._inbox: deque[tuple[bytes, Frames]] = deque()
        self._awake = False
        self._seqs: Counter[bytes] = Counter()
        loop.after(TICK_S, self._tick)

    # --- life -----------------------------------------------------------------------------------

    def start(self, kept: Mapping[str, e.Persist]) -> None:
        """Begin with what was kept of an earlier life."""
        self.node = Node(self._settings)
        self._seqs.clear()
        restored = [
            e.Restored(name, p.term, p.epoch, p.placement, p.likeness) for name, p in kept.items()
        ]
        self.take(*restored)

    def stop(self) -> None:
        """SIGKILL: what was on the way to it is gone."""
        self.node = None
        self._inbox.clear()

    def _tick(self) -> None:
        self._loop.after(TICK_S, self._tick)
        self.take()

    # --- turns ----------------------------------------------------------------------------------

    def arrived(self, peer: bytes, frames: Frames) -> None:
        """A local peer's frames are there."""
        if self.node is None:
            return
        self._inbox.append((peer, frames))
        self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._loop.at(max(self._loop.now + WAKE_S, self._free_at), self._turn)

    def _turn(self) -> None:
        self._awake = False
        if self.node is None:
            return
        batch = [self._inbox.popleft() for _ in range(min(BATCH, len(self._inbox)))]
        if self._inbox:
            self._wake()
        self._run(batch, ())

    def take(self, *events: e.Event) -> None:
        """Take what does not come over a socket."""
        self._run((), events)

    def _run(self, batch: Sequence[tuple[bytes, Frames]], events: Sequence[e.Event]) -> None:
        """One turn, measured; what it brought is performed afterwards."""
        meter, node = self.meter, self.node
        if node is None:
            return
        outgoing: list[tuple[bytes, Frames]] = []
        effects: list[e.Effect] = []
        began = last = thread_time()

        def step(kind: str, event: e.Event) -> None:
            nonlocal last
            made = node.step(event)
            self._encode(made, outgoing)
            effects.extend(made)
            now = thread_time()
            meter.cpu_s[kind] += now - last
            meter.events[kind] += 1
            last = now

        step("tick", e.Tick(self._clock(self._loop.now)))
        for peer, frames in batch:
            received = e.Received(peer, *AGENT.decode(frames))
            step(AGENT.tag(received.message), received)
        for event in events:
            step(type(event).__name__, event)
        meter.longest_turn_s = max(meter.longest_turn_s, last - began)
        meter.received_bytes += sum(sum(map(len, frames)) for _, frames in batch)
        if self._busy:
            self._free_at = max(self._free_at, self._loop.now) + last - began
            self._loop.at(self._free_at, lambda: self._perform(effects, outgoing))
        else:
            self._perform(effects, outgoing)

    def _encode(self, effects: Sequence[e.Effect], outgoing: list[tuple[bytes, Frames]]) -> None:
        for effect in effects:
            match effect:
                case e.Send(bytes() as peer, message):
                    self._seqs[peer] += 1
                    outgoing.append((peer, LEADER.encode(message, self._seqs[peer])))
                case _:
                    pass

    def _perform(
        self, effects: Sequence[e.Effect], outgoing: Sequence[tuple[bytes, Frames]]
    ) -> None:
        for peer, frames in outgoing:
            self.meter.sent_bytes += sum(map(len, frames))
            self._ways.to_rank(peer, frames)
        for effect in effects:
            self._ways.seen(effect)
