"""Steps being put together: what each rank says about one forward, until all ranks have.

Owns a ring of the newest forwards and the sums kept per forward. It must not know whether a report
is credible (that is `ledger`), nor what becomes of a complete step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplbd.core.report import INT32_MAX
from eplbd.errors import RemoteProtocolError


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
    """What some ranks say about the same consecutive forwards, in logical terms.

    ranks: `[r]`. heat: `[r, steps, n]` integers, to add at `where`, `[r, n]` flat indices into
    layers x experts, which may repeat; or to all of them, in order, where that is None. load:
    integers, `[r, steps, layers]` that the rank processed or `[r, steps, ranks, layers]` that it
    sent to each. routed, tokens: `[r, steps]` int64. dummy: `[r, steps]` bool.
    """

    ranks: NDArray[np.int32]
    first_forward: int
    epoch: int
    phase: int
    heat: NDArray[np.integer]
    where: NDArray[np.intp] | None
    load: NDArray[np.integer]
    routed: NDArray[np.int64]
    tokens: NDArray[np.int64]
    dummy: NDArray[np.bool_]

    def by_rank(self) -> Iterator[Part]:
        """One part for each rank."""
        for i in range(len(self.ranks)):
            yield self._picked(slice(i, i + 1), slice(None))

    def steps(self, chosen: NDArray[np.bool_]) -> Part:
        """Only these steps of it, `[steps]`; they need not be consecutive any more."""
        return self if chosen.all() else self._picked(slice(None), chosen)

    def _picked(self, ranks: slice, steps: slice | NDArray[np.bool_]) -> Part:
        return Part(
            self.ranks[ranks],
            self.first_forward,
            self.epoch,
            self.phase,
            self.heat[ranks][:, steps],
            None if self.where is None else self.where[ranks],
            self.load[ranks][:, steps],
            self.routed[ranks][:, steps],
            self.tokens[ranks][:, steps],
            self.dummy[ranks][:, steps],
        )


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

        Steps that a rank has reported before and steps that have left the ring are passed over and
        counted. Raises RemoteProtocolError, with nothing added, where a layer of one forward would
        exceed 2**31 - 1 tokens.
        """
        steps = part.heat.shape[1]
        self._advance(part.first_forward, part.first_forward + steps - 1)
        forwards = np.arange(part.first_forward, part.first_forward + steps)
        rows = forwards % self.steps
        fits = forwards >= self._tail
        again = self._seen[rows[:, None], part.ranks] & fits[:, None]
        self._check_load(part, rows, fits[:, None] & ~again)
        self.late += (steps - int(fits.sum())) * len(part.ranks)
        if not again.any():
            return self._put(part.steps(fits), rows[fits])
        self.repeated += int(again.sum())
        done: list[Step] = []
        for alone, before in zip(part.by_rank(), again.T, strict=True):
            fresh = fits & ~before
            done += self._put(alone.steps(fresh), rows[fresh])
        return done

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

    def _check_load(self, part: Part, rows: NDArray[np.intp], fresh: NDArray[np.bool_]) -> None:
        """Refuse counts that bring a layer over what its sums can hold; fresh: `[steps, r]`."""
        load = part.load if part.load.ndim == 3 else part.load.sum(axis=2)
        if (self._total[rows] + load.sum(axis=0, dtype=np.int64)).max() <= INT32_MAX:
            return  # however many of the steps are fresh
        told = self._total[rows] + np.cumsum(load * fresh.T[:, :, None], axis=0)
        if told.max() <= INT32_MAX:
            return
        who, i, layer = (int(at) for at in np.argwhere(told > INT32_MAX)[0])
        raise RemoteProtocolError(
            f"heat report of rank {part.ranks[who]}: counts bring forward "
            f"{part.first_forward + i}, layer {layer} to {int(told[who, i, layer])} tokens, "
            f"expected at most {INT32_MAX}; the counters are corrupt or were never reset"
        )

    def _put(self, part: Part, rows: NDArray[np.intp]) -> list[Step]:
        """Add steps that are all in the ring and new of their ranks, in `rows`."""
        self._add_load(part, rows)
        self._add_heat(part, rows)
        self._tokens[rows] += part.tokens.sum(axis=0)
        self._mark(part, rows)
        done = np.flatnonzero(self._count[rows] == self.ranks)
        return [self._step(int(rows[i])) for i in done]

    def _add_load(self, part: Part, rows: NDArray[np.intp]) -> None:
        load = part.load
        if load.ndim == 3:
            self._total[rows] += load.sum(axis=0, dtype=np.int64)
            self._load[rows[:, None], part.ranks] = load.swapaxes(0, 1)
        else:
            load = load.sum(axis=0, dtype=np.int64)
            self._total[rows] += load.sum(axis=1)
            self._load[rows] += load.astype(np.int32)

    def _add_heat(self, part: Part, rows: NDArray[np.intp]) -> None:
        if part.where is None:
            self._heat[rows] += part.heat.sum(axis=0, dtype=np.int32)
            return
        # Step by step, flat and of one dtype: an index of all steps at once would take twice the
        # memory of the counts, two dtypes ten times as long.
        where = part.where.reshape(-1)
        by_step = part.heat.swapaxes(0, 1).astype(np.int32).reshape(len(rows), where.size)
        for row, heat in zip(rows.tolist(), by_step, strict=True):
            np.add.at(self._heat[row], where, heat)

    def _mark(self, part: Part, rows: NDArray[np.intp]) -> None:
        busy = ~part.dummy.all(axis=0)
        self._routed[rows[:, None], part.ranks] = part.routed.T
        self._seen[rows[:, None], part.ranks] = True
        self._phase[rows] |= np.where(busy, part.phase, 0).astype(np.int8)
        self._busy[rows] |= busy
        started = self._count[rows] > 0
        self._torn[rows] |= started & (self._epoch[rows] != part.epoch)
        self._epoch[rows] = part.epoch
        self._count[rows] += len(part.ranks)

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
