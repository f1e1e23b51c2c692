"""The heat ring: per-step counts from the forward thread to the agent thread, without a wait.

Owns the bookkeeping between the two threads and the blocks that come out. It must not know where
counts live (`torch_ring` keeps them on a device, `memory` in numpy), nor who reads the blocks.

One producer, the forward thread: `record`, `flip`, `flush`. One consumer, the agent thread:
`drain`. No lock. Both sides share two counters that only grow, `_closed` (blocks the producer has
handed over) and `_drained` (blocks the consumer has given back), each written by one side alone.
Block `n` lives in row `n % blocks` of every array; the producer touches it while
`_closed <= n < _drained + blocks`, the consumer while `_drained <= n < _closed`: never both. The
interpreter runs the two threads' bytecode one at a time, so a thread that sees a counter's new
value also sees everything stored before it. Without that lock (free-threaded Python) the two
counters would have to become atomic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eplbd.core.heat import PHASES
from eplbd.errors import LocalProtocolError

BLOCK_STEPS = 16
"""Steps that travel to the host together: one copy and one event per sixteen forwards."""

_NEVER = -1


@dataclass(frozen=True, slots=True, eq=False)
class HeatBlock:
    """Consecutive forwards of one rank under one placement. Arrays are read-only, one row per step.

    first_forward: of row 0. epoch: of the placement in force. counts: `[steps, layers, columns]`
    int32 tokens; a column is a local slot (tokens received) or a global one (tokens sent). routed:
    `[steps]` int64 token-expert assignments that this rank routed, all layers. tokens: `[steps]`
    int32 valid tokens. dummy: `[steps]` bool. phase: `[steps]` int8, index into `PHASES`.
    """

    first_forward: int
    epoch: int
    counts: NDArray[np.int32]
    routed: NDArray[np.int64]
    tokens: NDArray[np.int32]
    dummy: NDArray[np.bool_]
    phase: NDArray[np.int8]

    def runs(self) -> Iterator[tuple[str, HeatBlock]]:
        """Yield the longest pieces of one phase, in order, each with the name of its phase."""
        changes = np.flatnonzero(np.diff(self.phase)) + 1
        edges = [0, *changes.tolist(), len(self.phase)]
        for start, end in pairwise(edges):
            piece = HeatBlock(
                self.first_forward + start,
                self.epoch,
                self.counts[start:end],
                self.routed[start:end],
                self.tokens[start:end],
                self.dummy[start:end],
                self.phase[start:end],
            )
            yield PHASES[int(self.phase[start])], piece


@dataclass(frozen=True, slots=True)
class RingStatistics:
    """steps: recorded and handed over. lost_steps: dropped, the reader being too slow."""

    steps: int
    lost_steps: int


class Counters(Protocol):
    """Where the counts are; addressed by block row and step. Nothing here may wait for a device.

    All but `shipped` and `read` are called on the forward thread.
    """

    @property
    def blocks(self) -> int:
        """Blocks there is room for."""
        ...

    def keep(self, block: int, step: int) -> None:
        """Store the pass's counts as a step of a block and start the next pass from zero."""
        ...

    def drop(self) -> None:
        """Start the next pass from zero."""
        ...

    def ship(self, block: int) -> None:
        """Start a block on its way to the host."""
        ...

    def shipped(self, block: int) -> bool:
        """Tell whether a shipped block has arrived, without waiting for it."""
        ...

    def read(self, block: int, steps: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Copy out an arrived block: counts `[steps, layers, columns]`, routed `[steps]`."""
        ...


class HeatRing:
    """The ring over `counters`; `epoch` is that of the placement in force at attach.

    When all blocks wait for the reader, the newest steps are dropped and counted.
    """

    def __init__(self, counters: Counters, *, epoch: int = 0) -> None:
        blocks = counters.blocks
        self._counters = counters
        self._blocks = blocks
        self._closed = 0
        self._drained = 0
        self._steps = 0
        self._lost = 0
        self._epoch = epoch
        self._filled = 0
        self._next = _NEVER
        self._first = [0] * blocks
        self._epochs = [0] * blocks
        self._lengths = [0] * blocks
        self._tokens = np.zeros((blocks, BLOCK_STEPS), dtype=np.int32)
        self._dummy = np.zeros((blocks, BLOCK_STEPS), dtype=np.bool_)
        self._phase = np.zeros((blocks, BLOCK_STEPS), dtype=np.int8)

    # --- the forward thread ---------------------------------------------------------------------

    def record(self, forward: int, *, tokens: int, dummy: bool = False, phase: int = 0) -> None:
        """Take the counts of the forward just issued. No wait, no lock.

        forward: its number. tokens: valid tokens, padding excluded. phase: index into `PHASES`.
        """
        if forward != self._next and self._filled:
            self.flush()
        self._next = forward + 1
        closed = self._closed
        if closed - self._drained >= self._blocks:
            self._lost += 1
            self._counters.drop()
            return
        block, step = closed % self._blocks, self._filled
        if step == 0:
            self._first[block] = forward
        self._counters.keep(block, step)
        self._tokens[block, step] = tokens
        self._dummy[block, step] = dummy
        self._phase[block, step] = phase
        self._filled = step + 1
        if step + 1 == BLOCK_STEPS:
            self.flush()

    def flip(self, epoch: int) -> None:
        """The forwards from here on run under the placement of `epoch`."""
        self.flush()
        self._epoch = epoch

    def flush(self) -> None:
        """Hand over the steps recorded so far, be they fewer than a block holds."""
        if not self._filled:
            return
        block = self._closed % self._blocks
        self._epochs[block] = self._epoch
        self._lengths[block] = self._filled
        self._counters.ship(block)
        self._steps += self._filled
        self._filled = 0
        self._closed += 1

    # --- the agent thread -----------------------------------------------------------------------

    def drain(self) -> list[HeatBlock]:
        """Return the blocks that have arrived since the last call, oldest first; never waits."""
        drained: list[HeatBlock] = []
        while self._drained < self._closed:
            block = self._drained % self._blocks
            if not self._counters.shipped(block):
                break
            drained.append(self._read(block))
            self._drained += 1
        return drained

    def statistics(self) -> RingStatistics:
        """Figures so far; from any thread."""
        return RingStatistics(self._steps, self._lost)

    def _read(self, block: int) -> HeatBlock:
        steps = self._lengths[block]
        counts, routed = self._counters.read(block, steps)
        tokens = self._tokens[block, :steps].copy()
        dummy = self._dummy[block, :steps].copy()
        phase = self._phase[block, :steps].copy()
        for array in (counts, routed, tokens, dummy, phase):
            array.setflags(write=False)
        return HeatBlock(
            self._first[block], self._epochs[block], counts, routed, tokens, dummy, phase
        )


def check_shape(layers: int, columns: int, blocks: int) -> None:
    """Raise LocalProtocolError for a ring that could never hand anything over."""
    if min(layers, columns) < 1 or blocks < 2:
        raise LocalProtocolError(
            f"heat ring of {layers} layers, {columns} columns, {blocks} blocks: "
            "at least one layer and column, and two blocks, one to fill and one to read"
        )
