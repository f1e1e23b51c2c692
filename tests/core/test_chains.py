"""Chains: whatever order they are taken in, every expert stays placed after every unit."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core.chains import chains
from eplbd.core.placement import Placement
from eplbd.core.plan import align
from tests.core.arrangements import Group, pairs


@given(pairs(), st.randoms(use_true_random=False))
def test_any_interleaving_is_safe(case: tuple[Group, Placement, Placement], random: Random) -> None:
    group, current, target = case
    aligned = align(current, target)
    for layer in range(group.layers):
        rows = current.slots[layer].copy()
        pending = chains(rows, aligned.slots[layer])
        while pending:
            chain = random.choice(pending)
            unit = chain.pop(0)
            if not chain:
                pending.remove(chain)
            writing = [rank for rank, _, _ in unit.writes]
            assert len(set(writing)) == len(writing), "a rank receives twice in one unit"
            assert unit.ranks == sum(1 << rank for rank in writing)
            for rank, slot, expert in unit.writes:
                rows[rank, slot] = expert
            assert set(rows.ravel().tolist()) == set(range(group.experts))
        assert np.array_equal(np.sort(rows), np.sort(aligned.slots[layer]))


def test_only_what_must_commit_together_does() -> None:
    # 0 and 1 swap; 2 keeps a copy on rank 3, so its other slots are free to take 3 and 4.
    old = np.array([[0], [1], [2], [2], [3], [4]], np.int32)
    new = np.array([[1], [0], [3], [2], [4], [2]], np.int32)
    found = chains(old, new)
    assert [[len(unit.writes) for unit in chain] for chain in found] == [[2], [1, 1, 1]]
    assert [unit.writes[0] for unit in found[1]] == [(2, 0, 3), (4, 0, 4), (5, 0, 2)]


def test_no_difference_is_no_chain() -> None:
    rows = np.array([[0, 1], [2, 3]], np.int32)
    assert chains(rows, rows) == []
