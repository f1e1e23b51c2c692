"""Hypothesis strategies for groups and placements of any shape, with nothing but legal contents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from eplbd.core.placement import Placement
from eplbd.core.shares import settle
from eplbd.core.topology import Topology


@dataclass(frozen=True)
class Group:
    """A group, the number of its layers and experts, and whether ranks may hold duplicates."""

    topology: Topology
    layers: int
    experts: int
    duplicates: bool


@st.composite
def groups(draw: st.DrawFn, max_ranks: int = 7, max_slots: int = 5) -> Group:
    ranks = draw(st.integers(1, max_ranks))
    slots = draw(st.integers(1, max_slots))
    duplicates = draw(st.booleans())
    # Fewer experts than slots on a rank make duplicates unavoidable.
    experts = draw(st.integers(1 if duplicates else slots, ranks * slots))
    nodes = draw(st.lists(st.integers(0, 2), min_size=ranks, max_size=ranks))
    return Group(Topology(ranks, slots, tuple(nodes)), draw(st.integers(1, 3)), experts, duplicates)


@st.composite
def placements(draw: st.DrawFn, group: Group) -> Placement:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return shuffled(group, rng, steps=draw(st.sampled_from([0, 1, 4, 1000])))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Group, Placement, Placement]:
    """A group with two placements of it, sometimes close to each other, sometimes equal."""
    group = draw(groups())
    current = draw(placements(group))
    if draw(st.booleans()):
        return group, current, draw(placements(group))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return group, current, shuffled(group, rng, draw(st.integers(0, 6)), current)


def shuffled(
    group: Group, rng: np.random.Generator, steps: int, start: Placement | None = None
) -> Placement:
    """Take random legal steps: exchange two slots, or give a surplus replica's slot away."""
    ranks, per_rank = group.topology.ranks, group.topology.slots_per_rank
    start = start or Placement.linear(group.layers, group.experts, ranks, per_rank)
    layers = start.slots.tolist()
    for rows in layers:
        for _ in range(min(steps, 3 * group.topology.slots)):
            (a, b), (i, j) = rng.integers(ranks, size=2), rng.integers(per_rank, size=2)
            expert = int(rng.integers(group.experts))
            old, other = rows[a][i], rows[b][j]
            if rng.random() < 0.5 and sum(row.count(old) for row in rows) > 1:
                if group.duplicates or expert not in rows[a]:
                    rows[a][i] = expert
            elif group.duplicates or a == b or (old not in rows[b] and other not in rows[a]):
                rows[a][i], rows[b][j] = other, old
    return Placement(np.array(layers, dtype=np.int32), group.experts)


def holds(placement: Placement) -> list[list[list[int]]]:
    """Sorted experts of every rank and layer: what a placement is up to the order of slots."""
    ordered: list[list[list[int]]] = np.sort(placement.slots, axis=2).tolist()
    return ordered


def weighted(placement: Placement, rng: np.random.Generator) -> Placement:
    """The placement with random shares, some of them nothing; settled, as a plan's are."""
    raw = rng.random(placement.slots.shape) * rng.integers(0, 4, placement.slots.shape) + 1e-9
    row = np.arange(placement.layers)[:, None, None]
    sums = np.zeros((placement.layers, placement.experts))
    np.add.at(sums, (np.broadcast_to(row, raw.shape), placement.slots), raw)
    return Placement.split(
        placement.slots,
        placement.experts,
        settle(raw / sums[row, placement.slots], placement.slots, placement.experts),
    )


@st.composite
def splits(draw: st.DrawFn, placement: Placement) -> Placement:
    """The placement with any shares, or with none."""
    if draw(st.integers(0, 3)) == 0:
        return placement
    return weighted(placement, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
