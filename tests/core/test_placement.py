"""Placements: the value, the judge of foreign arrays, the derived maps."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core.maps import derive_maps
from eplbd.core.placement import Placement, par, rank_load, validate
from eplbd.core.topology import Topology
from eplbd.errors import EplbdError, PlacementError
from tests.core.arrangements import Group, groups, pairs, placements

PAIR = Topology.single_node(2, 3)
"""Two ranks of three slots; `GOOD` places four experts on them."""
GOOD = [[[0, 1, 2], [3, 0, 1]], [[3, 2, 1], [0, 1, 2]]]


def judge(array: object, *, allow_duplicates: bool = False) -> Placement:
    return validate(array, experts=4, topology=PAIR, layers=2, allow_duplicates=allow_duplicates)


def good() -> NDArray[np.int32]:
    return np.array(GOOD, dtype=np.int32)


# --- the value ----------------------------------------------------------------------------------


def test_linear_is_the_engines_layout() -> None:
    placement = Placement.linear(2, 5, 3, 2)
    assert placement.slots.tolist() == [[[0, 1], [2, 3], [4, 0]]] * 2
    assert (placement.layers, placement.ranks, placement.slots_per_rank) == (2, 3, 2)
    assert Placement.linear(1, 2, 1, 5).slots.tolist() == [[[0, 1, 0, 1, 0]]]


def test_owns_its_contents() -> None:
    mine = good()
    placement = Placement(mine, 4)
    view = mine.view()
    view.setflags(write=False)
    behind_a_view = Placement(view, 4)
    mine[0, 0, 0] = 3
    assert placement.slots[0, 0, 0] == 0
    assert behind_a_view.slots[0, 0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        placement.slots[0, 0, 0] = 3


def test_published_arrays_are_not_copied() -> None:
    placement = Placement(good(), 4)
    assert Placement(placement.slots, 4).slots is placement.slots


@pytest.mark.parametrize("dtype", ["int64", "uint8", ">i4"])
def test_takes_other_integers(dtype: str) -> None:
    placement = Placement(np.asarray(GOOD, dtype), 4)
    assert placement.slots.dtype == np.int32
    assert placement == Placement(good(), 4)


def test_refuses_values_beyond_int32() -> None:
    wide: NDArray[Any] = good().astype(np.int64) + 2**32
    with pytest.raises(PlacementError, match="beyond int32"):
        Placement(wide, 4)


def test_equality_goes_by_contents_shape_and_experts() -> None:
    one = Placement(good(), 4)
    assert one == Placement(good().copy(), 4)
    assert hash(one) == hash(Placement(good(), 4))
    assert len(one.digest) == 16
    assert one != Placement(good(), 5)
    assert one != Placement(good().reshape(2, 3, 2), 4)
    assert one != Placement(good()[:, ::-1], 4)
    assert one != "placement"


@given(pairs())
def test_digest_separates_placements(case: tuple[Group, Placement, Placement]) -> None:
    _, a, b = case
    assert (a == b) == np.array_equal(a.slots, b.slots)


@given(groups().flatmap(placements))
def test_counts_and_hosts(placement: Placement) -> None:
    replicas, hosts = placement.replicas(), placement.hosts()
    assert replicas.sum() == placement.slots.size
    for layer, rank, expert in np.ndindex(hosts.shape):
        times = placement.slots[layer, rank].tolist().count(expert)
        assert hosts[layer, rank, expert] == (times > 0)
        replicas[layer, expert] -= times
    assert not replicas.any()


@given(groups().flatmap(placements))
def test_duplicates_are_seen(placement: Placement) -> None:
    rows = placement.slots.reshape(-1, placement.slots_per_rank).tolist()
    assert placement.has_duplicates == any(len(set(row)) < len(row) for row in rows)


def test_with_layers_changes_only_those() -> None:
    placement = Placement(good(), 4)
    changed = placement.with_layers(np.array([1]), np.array([[[0, 1, 2], [1, 2, 3]]]))
    assert changed.slots.tolist() == [GOOD[0], [[0, 1, 2], [1, 2, 3]]]
    assert placement == Placement(good(), 4)
    assert not changed.slots.flags.writeable


# --- the judge ----------------------------------------------------------------------------------


@given(st.data())
def test_accepts_every_legal_placement(data: st.DataObject) -> None:
    group = data.draw(groups())
    placement = data.draw(placements(group))
    answer = placement.slots.astype(data.draw(st.sampled_from([np.int64, np.int32, np.uint16])))
    judged = validate(
        answer,
        experts=group.experts,
        topology=group.topology,
        layers=group.layers,
        allow_duplicates=group.duplicates,
    )
    assert judged == placement
    answer[:] = 0
    assert judged == placement


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (GOOD, "got list, expected a plain numpy.ndarray"),
        (None, "got NoneType"),
        (np.ma.masked_equal(good(), 0), "got MaskedArray"),
        (good().astype(np.float32), "dtype float32, expected an integer dtype"),
        (good().astype(bool), "dtype bool"),
        (good().astype(object), "dtype object"),
        (good()[0], r"2 dimensions, expected 3"),
        (good()[:1], r"shape \(1, 2, 3\), expected \(2, 2, 3\)"),
        (np.zeros((0, 0, 0), np.int32), r"shape \(0, 0, 0\), expected \(2, 2, 3\)"),
    ],
)
def test_refuses_a_wrong_form(array: object, said: str) -> None:
    with pytest.raises(PlacementError, match=said):
        judge(array)


@pytest.mark.parametrize("wrong", [4, -1, 2**31 - 1, -(2**31)])
def test_refuses_ids_that_are_no_expert(wrong: int) -> None:
    array = good()
    array[1, 0, 2] = wrong
    with pytest.raises(PlacementError, match=f"slot 2 holds expert {wrong}, expected 0..3") as e:
        judge(array)
    assert (e.value.layer, e.value.rank, e.value.slot) == (1, 0, 2)


def test_range_is_judged_before_the_width_is_narrowed() -> None:
    array = good().astype(np.int64)
    array[0, 1, 1] += 2**32
    with pytest.raises(PlacementError, match="holds expert 4294967296, expected"):
        judge(array)


def test_refuses_a_lost_expert() -> None:
    array = good()
    array[1, 0, 0] = 0
    with pytest.raises(PlacementError, match="layer 1 holds expert 3 in no slot") as e:
        judge(array)
    assert (e.value.layer, e.value.rank, e.value.slot) == (1, None, None)


def test_refuses_a_duplicate_unless_asked() -> None:
    array = good()
    array[0, 1, 2] = 0
    with pytest.raises(
        PlacementError, match=r"rank 1, slot 2 holds expert 0 again \(first in"
    ) as e:
        judge(array)
    assert (e.value.layer, e.value.rank, e.value.slot) == (0, 1, 2)
    assert judge(array, allow_duplicates=True).slots.tolist() == array.tolist()


def test_refuses_more_experts_than_slots() -> None:
    with pytest.raises(PlacementError, match="7 experts cannot fit into 2 ranks x 3 slots"):
        validate(good(), experts=7, topology=PAIR, layers=2)


def test_the_error_survives_a_process_boundary() -> None:
    error = PlacementError("layer 1", layer=1, rank=2, slot=3)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is PlacementError
    assert issubclass(PlacementError, (EplbdError, ValueError))
    assert (str(copy), copy.layer, copy.rank, copy.slot) == ("layer 1", 1, 2, 3)


# --- the maps -----------------------------------------------------------------------------------


@given(st.data())
def test_maps_name_only_holders(data: st.DataObject) -> None:
    group = data.draw(groups())
    placement = data.draw(placements(group))
    layers = np.array(data.draw(st.lists(st.integers(0, group.layers - 1), min_size=1)))
    maps = derive_maps(placement, layers)
    flat = placement.slots.reshape(group.layers, -1)
    per_rank = group.topology.slots_per_rank
    for row, layer in enumerate(layers):
        for expert in range(group.experts):
            held = np.flatnonzero(flat[layer] == expert).tolist()
            assert maps.replica_count[row, expert] == len(held)
            padding = [-1] * (maps.physical.shape[2] - len(held))
            assert maps.physical[row, expert].tolist() == held + padding
            for rank in range(group.topology.ranks):
                assert maps.log2phy[rank, row, expert] == held[rank % len(held)]
                local = [slot % per_rank for slot in held if slot // per_rank == rank]
                assert maps.expert_map[rank, row, expert] == min(local, default=-1)


def test_all_layers_by_default_and_finished_arrays() -> None:
    maps = derive_maps(Placement(good(), 4))
    for array in (maps.replica_count, maps.physical, maps.log2phy, maps.expert_map):
        assert array.dtype == np.int32
        assert array.flags.c_contiguous
        assert not array.flags.writeable
    assert maps.replica_count.tolist() == [[2, 2, 1, 1], [1, 2, 2, 1]]
    assert maps.log2phy[:, 0].tolist() == [[0, 1, 2, 3], [4, 5, 2, 3]]
    assert maps.expert_map[:, 1].tolist() == [[-1, 2, 1, 0], [0, 1, 2, -1]]


def test_maps_of_more_experts_than_sixteen_bits() -> None:
    placement = Placement.linear(1, 70_000, 2, 35_001)
    maps = derive_maps(placement)
    assert maps.log2phy[1, 0, 1] == 70_001
    assert maps.log2phy[0, 0, 69_999] == 69_999


def test_maps_refuse_a_lost_expert() -> None:
    with pytest.raises(PlacementError, match="layer 0 holds expert 4 in no slot"):
        derive_maps(Placement(good(), 5))


# --- the arithmetic -----------------------------------------------------------------------------


def test_rank_load_splits_an_expert_over_its_replicas() -> None:
    heat = np.array([[[10, 20, 30, 40], [8, 6, 4, 2]]])
    load = rank_load(Placement(good(), 4), heat)
    assert load.tolist() == [[[5 + 10 + 30, 40 + 5 + 10], [2 + 2 + 3, 8 + 3 + 2]]]


@given(groups().flatmap(placements), st.integers(0, 2**32 - 1))
def test_rank_load_conserves_heat(placement: Placement, seed: int) -> None:
    shape = (3, placement.layers, placement.experts)
    heat = np.random.default_rng(seed).integers(0, 1000, shape)
    np.testing.assert_allclose(rank_load(placement, heat).sum(-1), heat.sum(-1))


def test_par() -> None:
    assert par(np.array([[1, 1, 1, 1], [4, 0, 0, 0], [0, 0, 0, 0]])).tolist() == [1.0, 4.0, 1.0]
    assert par(np.array([7])) == 1.0
