"""Steps being put together: what each rank says about one forward, until all ranks have.

Owns a ring of the newest forwards and the sums kept per forward. It must not know whether a report
is credible (that is `ledger`), nor what becomes of a complete step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplbd.errors import RemoteProtocolError

INT32_MAX = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One forward that every rank reported; arrays are read-only.

    phase: the ranks' phase bits, joined; ranks without tokens of their own have none. dummy: no
    rank had tokens. torn: ranks ran it under different epochs. tokens: valid ones over all ranks.
    heat: `[layers, experts]` int32. load: `[ranks, layers]` int32 tokens that each rank processed.
    routed: `[ranks]` int64 assignments that each rank routed.
    """

    forward: int
    epoch: int
    phase: int
    dummy: bool
    torn: bool
    tokens: int
    heat: NDArray[np.int32]
    load: NDArray[np.int32]
    routed: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one rank says about consecutive forwards, in logical terms.

    heat: `[steps, n]` int32, to add at `where`, `[n]` flat indices into layers x experts, or None
    for all of them; where `repeats`, an index may occur twice. load: int64, `[steps, layers]` that
    this rank processed or `[steps, ranks, layers]` that it sent to each. routed, tokens: `[steps]`
    int64. dummy: `[steps]` bool.
    """

    rank: int
    first_forward: int
    epoch: int
    phase: int
    heat: NDArray[np.int32]
    where: NDArray[np.intp] | None
    repeats: bool
    load: NDArray[np.int64]
    routed: NDArray[np.int64]
    tokens: NDArray[np.int64]
    dummy: NDArray[np.bool_]


class Assembly:
    """The newest `steps` forwards; forward f is in row f % steps."""

    def __init__(self, ranks: int, layers: int, experts: int, steps: int) -> None:
        self.ranks, self.layers, self.experts, self.steps = ranks, layers, experts, steps
        self.lost = self.late = self.repeated = 0
        """Forwards that left incomplete; steps that came for one that had left, or came again."""
        self._tail = 0
        self.head = -1
        """Newest forward that anybody reported; -1 before the first."""
        self._heat = np.zeros((steps, layers * experts), dtype=np.int32)
        self._load = np.zeros((steps, ranks, layers), dtype=np.int32)
        self._total = np.zeros((steps, layers), dtype=np.int64)
        self._routed = np.zeros((steps, ranks), dtype=np.int64)
        self._tokens = np.zeros(steps, dtype=np.int64)
        self._seen = np.zeros((steps, ranks), dtype=np.bool_)
        self._count = np.zeros(steps, dtype=np.int32)
        self._epoch = np.zeros(steps, dtype=np.int64)
        self._phase = np.zeros(steps, dtype=np.int8)
        self._busy = np.zeros(steps, dtype=np.bool_)
        self._torn = np.zeros(steps, dtype=np.bool_)

    def add(self, part: Part) -> list[Step]:
        """Add a part of at most `steps` forwards; return what it completes, in order.

        Steps that the rank has reported before and steps that have left the ring are passed over
        and counted. Raises RemoteProtocolError, with nothing added, where a layer of one forward
        would exceed 2**31 - 1 tokens.
        """
        steps = len(part.heat)
        self._advance(part.first_forward, part.first_forward + steps - 1)
        forwards = np.arange(part.first_forward, part.first_forward + steps)
        rows = forwards % self.steps
        fits = forwards >= self._tail
        again = fits & self._seen[rows, part.rank]
        self.late += steps - int(fits.sum())
        self.repeated += int(again.sum())
        fits &= ~again
        if fits.all():
            chosen: slice | NDArray[np.bool_] = slice(None)
        else:
            chosen, rows = fits, rows[fits]
        if not len(rows):
            return []
        self._add_load(part, rows, part.load[chosen])
        self._add_heat(part, rows, part.heat[chosen])
        self._tokens[rows] += part.tokens[chosen]
        self._mark(part, rows, part.routed[chosen], part.dummy[chosen])
        done = np.flatnonzero(self._count[rows] == self.ranks)
        return [self._step(int(rows[i])) for i in done]

    def restart(self, first: int) -> None:
        """Forget the forwards under way and go on at `first`, wherever that is."""
        self.lost += int(np.count_nonzero((self._count > 0) & (self._count < self.ranks)))
        self._count[:] = 0
        self._tail, self.head = first, first - 1

    def _advance(self, first: int, last: int) -> None:
        """Move the ring on so that `last` is in it; drop what no longer is."""
        if self.head < 0:
            self._tail, self.head = first, first - 1
        if last <= self.head:
            return
        tail = max(self._tail, last - self.steps + 1)
        leaving = np.arange(self._tail, min(tail, self.head + 1)) % self.steps
        complete = int(np.count_nonzero(self._count[leaving] == self.ranks))
        self.lost += tail - self._tail - complete
        rows = np.arange(max(self.head + 1, tail), last + 1) % self.steps
        for array in (
            self._heat,
            self._load,
            self._total,
            self._routed,
            self._tokens,
            self._seen,
            self._count,
            self._phase,
            self._busy,
            self._torn,
        ):
            array[rows] = 0
        self._tail, self.head = tail, last

    def _add_load(self, part: Part, rows: NDArray[np.intp], load: NDArray[np.int64]) -> None:
        total = self._total[rows] + (load if load.ndim == 2 else load.sum(axis=1))
        if total.max() > INT32_MAX:
            i, layer = (int(at) for at in np.argwhere(total > INT32_MAX)[0])
            raise RemoteProtocolError(
                f"heat report of rank {part.rank}: counts bring forward {self._forward(rows[i])}, "
                f"layer {layer} to {int(total[i, layer])} tokens, expected at most {INT32_MAX}; "
                "the counters are corrupt or were never reset"
            )
        self._total[rows] = total
        if load.ndim == 2:
            self._load[rows, part.rank] = load
        else:
            self._load[rows] += load.astype(np.int32)

    def _add_heat(self, part: Part, rows: NDArray[np.intp], heat: NDArray[np.int32]) -> None:
        if part.where is None:
            self._heat[rows] += heat
            return
        flat = self._heat.reshape(-1)
        index = (rows * self._heat.shape[1])[:, None] + part.where
        if part.repeats:
            np.add.at(flat, index, heat)
        else:
            flat[index] += heat

    def _mark(
        self,
        part: Part,
        rows: NDArray[np.intp],
        routed: NDArray[np.int64],
        dummy: NDArray[np.bool_],
    ) -> None:
        self._routed[rows, part.rank] = routed
        self._seen[rows, part.rank] = True
        self._phase[rows] |= np.where(dummy, 0, part.phase).astype(np.int8)
        self._busy[rows] |= ~dummy
        started = self._count[rows] > 0
        self._torn[rows] |= started & (self._epoch[rows] != part.epoch)
        self._epoch[rows] = part.epoch
        self._count[rows] += 1

    def _forward(self, row: int) -> int:
        return int(self.head - (self.head - row) % self.steps)

    def _step(self, row: int) -> Step:
        arrays = (
            self._heat[row].reshape(self.layers, self.experts).copy(),
            self._load[row].copy(),
            self._routed[row].copy(),
        )
        for array in arrays:
            array.setflags(write=False)
        return Step(
            self._forward(row),
            int(self._epoch[row]),
            int(self._phase[row]),
            not self._busy[row],
            bool(self._torn[row]),
            int(self._tokens[row]),
            *arrays,
        )
