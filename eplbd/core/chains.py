"""Which moves of a layer have to commit together, and which must follow which.

Owns the pairing of freed slots with gained experts and the cut into units. It must not know epochs,
senders or rounds.

An expert needs an order only where all its old slots are freed: then one of them may be overwritten
no sooner than one of its new slots is written; every other move of it may come at any time. So each
move waits for at most one other and is waited for by at most one: moves form chains, which may be
cut anywhere, and rings, which may not. Within a rank any freed slot may take any gained expert;
that freedom is used to break a ring in two wherever it would pass a rank twice. Hence a unit
receives at most one expert per rank, and a limit of one expert per rank and epoch always suffices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Write = tuple[int, int, int]
"""Rank, local slot, the expert that it will hold."""


class Unit(NamedTuple):
    """Writes that commit together, at most one per rank."""

    ranks: int
    """Bit set of the receiving ranks."""
    writes: tuple[Write, ...]


Chain = list[Unit]
"""Units of which each may commit once those before it have, or with them."""


def chains(
    old: NDArray[np.int32], new: NDArray[np.int32], spared: Collection[int] = ()
) -> list[Chain]:
    """Cut the way from `old` to `new`, `[ranks, slots_per_rank]` of one layer, into chains.

    `new` is aligned: no rank frees and gains the same expert. Chains are independent of each other;
    the largest units, then the longest chains come first, because they are hardest to fit in.
    spared: ranks whose replicas do not count, so that every expert is on some other rank all the
    way; only where that is so at both ends.
    """
    ranks, slots = np.nonzero(old != new)
    if not len(ranks):
        return []
    kept = old == new
    kept[list(spared)] = False
    walk = _Walk(
        list(zip(ranks.tolist(), slots.tolist(), strict=True)),
        old[ranks, slots].tolist(),
        new[ranks, slots].tolist(),
        set(old[kept].tolist()),
    )
    found = [walk.path(rank, slot) for rank, slot in walk.free]
    while walk.waiting:
        found += walk.rings()
    found.sort(key=lambda chain: (-len(chain[0].writes), -len(chain)))
    return found


class _Walk:
    """What is still to be paired: a freed place with a gained expert, that with where it waits."""

    def __init__(
        self, places: list[tuple[int, int]], freed: list[int], gained: list[int], kept: set[int]
    ) -> None:
        self.free: list[tuple[int, int]] = []
        """Places that may be overwritten at any time."""
        self.waiting: dict[int, tuple[int, int]] = {}
        """By expert: the place that may be overwritten no sooner than the expert is elsewhere."""
        for place, expert in zip(places, freed, strict=True):
            if expert in kept or expert in self.waiting:
                self.free.append(place)
            else:
                self.waiting[expert] = place
        # Experts that something waits for are paired first: that turns rings into chains.
        self.gains: defaultdict[int, list[int]] = defaultdict(list)
        moving = self.waiting
        for (rank, _), expert in sorted(
            zip(places, gained, strict=True), key=lambda pair: pair[1] in moving
        ):
            self.gains[rank].append(expert)

    def path(self, rank: int, slot: int) -> Chain:
        """Walk on from a free place until nothing waits for what was gained."""
        chain: Chain = []
        while True:
            expert = self.gains[rank].pop()
            chain.append(Unit(1 << rank, ((rank, slot, expert),)))
            if expert not in self.waiting:
                return chain
            rank, slot = self.waiting.pop(expert)

    def rings(self) -> list[Chain]:
        """Walk one ring, once all paths are walked; cut it in two where it meets a rank again."""
        found: list[Chain] = []
        start = next(iter(self.waiting))
        rank, slot = self.waiting.pop(start)
        trail: list[Write] = []
        at: dict[int, int] = {}
        while True:
            if rank in at:
                cut = at[rank]
                _, slot_before, gained = trail[cut]
                found.append([_ring([*trail[cut + 1 :], (rank, slot, gained)])])
                for passed, _, _ in trail[cut:]:
                    del at[passed]
                del trail[cut:]
                slot = slot_before
            expert = self.gains[rank].pop()
            at[rank] = len(trail)
            trail.append((rank, slot, expert))
            if expert == start:
                return [*found, [_ring(trail)]]
            rank, slot = self.waiting.pop(expert)


def _ring(writes: list[Write]) -> Unit:
    return Unit(sum(1 << rank for rank, _, _ in writes), tuple(writes))
