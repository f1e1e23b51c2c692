"""Shares: what is wrong with them, their settled form, and the load that follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core.placement import Placement, even_shares, par, rank_load, validate
from eplbd.core.plan import align
from eplbd.core.shares import TOLERANCE, WHOLE, as_shares, even_parts, settle
from eplbd.core.topology import Topology
from eplbd.errors import PlacementError
from tests.core.arrangements import Group, groups, pairs, placements, splits, weighted

SLOTS = np.array([[[0, 1, 2], [3, 0, 1]], [[3, 2, 1], [0, 1, 2]]], dtype=np.int32)
PAIR = Topology.single_node(2, 3)
HALVES = even_shares(Placement(SLOTS, 4))


def judge(shares: object) -> Placement:
    return validate(SLOTS, experts=4, topology=PAIR, layers=2, shares=shares)


def changed(index: tuple[int, int, int], value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    shares = HALVES.copy()
    shares[index] = value
    return shares


def sums(placement: Placement) -> list[list[int]]:
    """Of the parts, for each layer and expert, counted slot by slot."""
    total = [[0] * placement.experts for _ in range(placement.layers)]
    parts = placement.parts()
    for at, expert in np.ndenumerate(placement.slots):
        total[at[0]][int(expert)] += int(parts[at])
    return total


# --- the judge ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (HALVES.tolist(), "got list, expected a plain numpy.ndarray of a floating dtype"),
        (SLOTS, "got int32, expected"),
        (HALVES.astype(object), "got object, expected"),
        (HALVES[:1], r"shape \(1, 2, 3\), expected that of the slots, \(2, 2, 3\)"),
        (changed((1, 0, 1), -0.5), "layer 1, expert 2: its share in slot 1 of rank 0 is -0.5"),
        (changed((0, 1, 0), np.nan), "layer 0, expert 3: its share in slot 0 of rank 1 is nan"),
        (changed((0, 1, 0), np.inf), "layer 0, expert 3: its share in slot 0 of rank 1 is inf"),
        (changed((0, 0, 0), 0.25), r"layer 0, expert 0: .* sum to 0.75, expected 1 .*\(1 such"),
        (changed((1, 0, 0), 0.0), "layer 1, expert 3: .* sum to 0, expected 1"),
        (HALVES * 2, r"layer 0, expert 0: .* sum to 2, .*\(8 such experts\); divide them"),
    ],
)
def test_what_is_wrong_is_named(shares: object, said: str) -> None:
    with pytest.raises(PlacementError, match=said):
        judge(shares)


def test_the_error_carries_its_place() -> None:
    with pytest.raises(PlacementError) as caught:
        judge(changed((1, 0, 1), -0.5))
    assert (caught.value.layer, caught.value.rank, caught.value.slot) == (1, 0, 1)
    with pytest.raises(PlacementError) as caught:
        judge(changed((1, 0, 1), 0.0))
    assert (caught.value.layer, caught.value.rank, caught.value.slot) == (1, None, None)


def test_rounding_is_no_fault_and_is_settled() -> None:
    off = TOLERANCE / 2
    found = judge(changed((0, 0, 0), 0.7 - off) + changed((0, 1, 1), 0.3) - HALVES)
    assert found.shares is not None
    assert {value for row in sums(found) for value in row} == {WHOLE}
    assert found.shares[0, 0, 0] == pytest.approx(0.7, abs=TOLERANCE)


def test_what_was_judged_cannot_be_changed_afterwards() -> None:
    shares = changed((0, 0, 0), 0.75) + changed((0, 1, 1), 0.25) - HALVES
    found = judge(shares)
    shares[:] = 0
    assert found.shares is not None
    assert found.shares[0, 0, 0] == 0.75
    with pytest.raises(ValueError, match="read-only"):
        found.shares[0, 0, 0] = 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_even_split_is_no_split(dtype: type[np.floating]) -> None:
    assert judge(HALVES.astype(dtype)).shares is None
    assert judge(HALVES.astype(dtype)).digest == Placement(SLOTS, 4).digest


def test_the_form_is_judged_at_once() -> None:
    with pytest.raises(PlacementError, match="expected that of the slots"):
        Placement(SLOTS, 4, HALVES[:, :1])
    assert Placement(SLOTS, 4, HALVES.astype(np.float64)).shares is not None


# --- the laws -----------------------------------------------------------------------------------


@given(groups().flatmap(placements).flatmap(splits))
def test_parts_of_every_expert_are_a_whole(placement: Placement) -> None:
    assert {value for row in sums(placement) for value in row} == {WHOLE}
    assert (placement.parts() >= 0).all()


@given(groups().flatmap(placements).flatmap(splits))
def test_settled_shares_settle_to_themselves(placement: Placement) -> None:
    parts = placement.parts()
    again = settle(as_shares(parts), placement.slots, placement.experts)
    assert np.array_equal(parts, again)
    assert Placement.split(placement.slots, placement.experts, parts) == placement


@given(groups().flatmap(placements))
def test_an_even_split_settles_to_even_parts(placement: Placement) -> None:
    parts = settle(even_shares(placement), placement.slots, placement.experts)
    assert np.array_equal(parts, even_parts(placement.slots, placement.experts))
    flat, slots = parts.reshape(placement.layers, -1), placement.slots
    for layer, expert in np.ndindex(placement.layers, placement.experts):
        own = flat[layer][slots[layer].ravel() == expert]
        assert own.max() - own.min() <= 1
        assert own.tolist() == sorted(own.tolist(), reverse=True)


@given(st.data())
def test_the_digest_differs_where_shares_do(data: st.DataObject) -> None:
    placement = data.draw(groups().flatmap(placements))
    a, b = data.draw(splits(placement)), data.draw(splits(placement))
    assert (a == b) == np.array_equal(a.parts(), b.parts())
    assert (a.shares is None) == (a.digest == placement.digest)


@given(groups().flatmap(placements), st.integers(0, 2**32 - 1))
def test_even_shares_load_as_no_shares(placement: Placement, seed: int) -> None:
    shape = (3, placement.layers, placement.experts)
    heat = np.random.default_rng(seed).integers(0, 1000, shape)
    even = Placement(placement.slots, placement.experts, even_shares(placement))
    np.testing.assert_allclose(rank_load(even, heat), rank_load(placement, heat), rtol=1e-6)


@given(groups().flatmap(placements).flatmap(splits), st.integers(0, 2**32 - 1))
def test_shares_conserve_heat(placement: Placement, seed: int) -> None:
    shape = (3, placement.layers, placement.experts)
    heat = np.random.default_rng(seed).integers(0, 1000, shape)
    np.testing.assert_allclose(rank_load(placement, heat).sum(-1), heat.sum(-1))


@given(groups().flatmap(placements).flatmap(splits), st.data())
def test_layers_are_replaced_with_their_shares(placement: Placement, data: st.DataObject) -> None:
    """What the leader announces and what an agent makes of it are the same to the last bit."""
    chosen = data.draw(st.sets(st.integers(0, placement.layers - 1), min_size=1))
    layers = np.array(sorted(chosen))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rows = placement.slots[layers][:, ::-1].copy()
    other = weighted(Placement(rows, placement.experts), np.random.default_rng(seed))
    changed = placement.with_layers(layers, rows, other.parts())
    assert np.array_equal(changed.parts()[layers], other.parts())
    rest = np.setdiff1d(np.arange(placement.layers), layers)
    assert np.array_equal(changed.parts()[rest], placement.parts()[rest])
    back = changed.with_layers(layers, placement.slots[layers], placement.parts()[layers])
    assert back == placement
    even = placement.with_layers(layers, rows)
    assert np.array_equal(even.parts()[layers], even_parts(rows, placement.experts))


@given(pairs(), st.integers(0, 2**32 - 1))
def test_align_takes_the_shares_along(case: tuple[Group, Placement, Placement], seed: int) -> None:
    _, current, target = case
    heat = np.random.default_rng(seed).integers(0, 1000, (target.layers, target.experts))
    split = weighted(target, np.random.default_rng(seed))
    aligned = align(current, split)
    assert np.array_equal(aligned.slots, align(current, target).slots)
    np.testing.assert_allclose(rank_load(aligned, heat), rank_load(split, heat))
    assert {value for row in sums(aligned) for value in row} == {WHOLE}


# --- what it is for -----------------------------------------------------------------------------


def test_shares_reach_what_no_even_split_can() -> None:
    """Eight experts on eight ranks of two slots; the best even split leaves 196.67 on a rank."""
    heat = np.array([[600, 560, 120, 120, 20, 10, 10, 10]])
    row = [[0, 1], [0, 1], [0, 2], [0, 3], [0, 4], [1, 5], [1, 6], [1, 7]]
    beside = heat[0, [1, 1, 2, 3, 4, 5, 6, 7]].astype(float)
    beside[:2] = 23.125
    tokens = np.stack([181.25 - beside, beside], axis=1)[None]
    slots = np.array([row], dtype=np.int32)
    topology = Topology.single_node(8, 2)
    shares = tokens / heat[0, slots]
    placement = validate(slots, experts=8, topology=topology, layers=1, shares=shares)
    assert rank_load(placement, heat).max() == pytest.approx(181.25, abs=2 * 600 / WHOLE)
    assert par(rank_load(placement, heat)).item() == pytest.approx(1.0, abs=1e-4)
    assert rank_load(Placement(slots, 8), heat).max() > 196.67
