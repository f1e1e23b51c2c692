"""How fast each rank is against the others: as declared, or as its forward times show.

Owns the two ways to know it, and when a figure is believed. Must not know what is done about a slow
rank: policies and the benefit test weigh loads by it.

A rank is slow if it takes longer although it carries no more. So times are read only while the load
of the rank, over its speed as known so far, is near the mean; what is found then corrects that
speed. An engine whose forwards end with a collective that all ranks wait for on the host has equal
times on all of them, and nothing is ever found.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eplbd.core.balancer import Balancer

_FIGURES = 33
"""Newest forward times of a rank, of which the middle one counts."""

_NEEDED = 17
"""Without so many of every rank there is no comparing them."""

_LEVEL = 0.1
"""A rank whose load is further from the mean is slow for that, or fast."""

_NOTICED = 0.1
"""A smaller difference is left alone, so that moves do not follow noise."""

_GRAIN = 0.05
"""Speeds are multiples of it: ranks that are alike shall be equal."""

_SLOWEST, _FASTEST = 0.25, 2.0
"""What is beyond is no slow rank but a broken one, or a broken clock."""

_SHORTEST_S, _LONGEST_S = 1e-6, 86_400.0


class Speeds:
    """Those of one group. Pure: time enters as measured durations."""

    def __init__(self, ranks: int) -> None:
        # Made as ranks speak: a `Hello` may name 65,536 of them.
        self._times: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_FIGURES))
        self._found = [1.0] * ranks

    def observe(self, rank: int, forward_s: float) -> None:
        """Take a rank's mean time of forwards without transfers; 0 where there was none."""
        if _SHORTEST_S <= forward_s <= _LONGEST_S:
            self._times[rank].append(forward_s)

    def learn(self, loads: NDArray[np.generic]) -> None:
        """Compare the ranks. loads: `[ranks]`, tokens in the same time."""
        total = np.asarray(loads, dtype=np.float64) / self._found
        times = [self._times[rank] for rank in range(len(self._found))]
        if min(map(len, times)) < _NEEDED or not total.any():
            return
        middle = [median(own) for own in times]
        usual = median(middle)
        for rank, apart in enumerate(np.abs(total / total.mean() - 1.0).tolist()):
            ratio = usual / middle[rank]
            if apart <= _LEVEL and abs(ratio - 1.0) >= _NOTICED:
                speed = round(self._found[rank] * ratio / _GRAIN) * _GRAIN
                self._found[rank] = min(max(speed, _SLOWEST), _FASTEST)
        for own in times:
            own.clear()  # they are of another speed, and soon of another load

    def now(self, declared: Mapping[int, float], *, measured: bool) -> tuple[float, ...]:
        """The speed of every rank; what is declared goes over what was measured."""
        found = self._found if measured else [1.0] * len(self._found)
        return tuple(declared.get(rank, speed) for rank, speed in enumerate(found))


def declared(entries: Sequence[str], group: str, ranks: int) -> dict[int, float]:
    """Speeds by rank, from `RANK=SPEED` and `GROUP:RANK=SPEED`; what names the group counts more.

    Entries for other groups, and for ranks that this one does not have, are passed over.
    """
    general: dict[int, float] = {}
    own: dict[int, float] = {}
    for entry in entries:
        place, _, speed = entry.rpartition("=")
        name, _, rank = place.rpartition(":")
        if name in ("", group) and int(rank) < ranks:
            (own if name else general)[int(rank)] = float(speed)
    return general | own


def weigh(balancer: Balancer) -> None:
    """Look at how fast the ranks of a group are, and let everything that plans know of it."""
    group, settings, speeds = balancer.group, balancer.settings.balance, balancer.timing.speeds
    assert group.topology is not None
    assert balancer.cycle is not None
    assert balancer.shadows is not None
    if settings.measure_speed:
        served = balancer.served()
        if len(served) >= settings.min_steps:
            speeds.learn(np.sum([step.load.sum(axis=1) for step in served], axis=0))
    known = declared(settings.rank_speed, group.name, group.shape.ranks)
    speed = speeds.now(known, measured=settings.measure_speed)
    if speed == group.topology.speed:
        return
    group.topology = replace(group.topology, speed=speed)
    balancer.gains.speed = np.array(speed)
    balancer.shadows.topology = group.topology
    for cycle in (balancer.cycle, *(each.cycle for each in balancer.shadows.members.values())):
        cycle.topology, cycle.refused = group.topology, None
    others = ", ".join(f"{rank}: {each:.2f}" for rank, each in enumerate(speed) if each != 1.0)
    group.note("info", "ranks weighed by their speed", speeds=others or "all equal")
