"""Rows of turns: even rows are the maps, shares are met, whoever reads the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core.maps import Maps, derive_maps
from eplbd.core.placement import Placement
from eplbd.core.shares import WHOLE, settle
from eplbd.errors import TransferError
from eplbd_vllm.schedule import at_turns, rows_of_turns

RANKS, PER_RANK, EXPERTS = 4, 4, 6


@st.composite
def splits(draw: st.DrawFn) -> tuple[Placement, NDArray[np.int32]]:
    """A placement of two layers, and parts of its slots: even, any, or all on one replica."""
    more = st.lists(st.integers(0, EXPERTS - 1), min_size=10, max_size=10)
    layers = [draw(st.permutations([*range(EXPERTS), *draw(more)])) for _ in range(2)]
    slots = np.array(layers, dtype=np.int32).reshape(2, RANKS, PER_RANK)
    weight = st.sampled_from([0, 0, 1, 1, 3, 17, 1000])
    weights = draw(st.lists(weight, min_size=slots.size, max_size=slots.size))
    shares = np.array(weights, dtype=np.float64).reshape(slots.shape)
    total = np.zeros((2, EXPERTS))
    at = np.arange(2)[:, None, None]
    np.add.at(total, (at, slots), shares)
    shares = np.where(total[at, slots] == 0, 1.0, shares)
    return Placement(slots, EXPERTS), settle(shares, slots, EXPERTS)


def maps_of(placement: Placement) -> Maps:
    return derive_maps(placement)


def shares_of(row: NDArray[np.int32]) -> NDArray[np.float64]:
    """`[slots]`: what each slot gets of the turns in `row`."""
    counted: NDArray[np.float64] = np.bincount(row, minlength=RANKS * PER_RANK) / row.size
    return counted


@given(splits())
def test_even_rows_are_the_maps(split: tuple[Placement, NDArray[np.int32]]) -> None:
    placement, _ = split
    maps = maps_of(placement)
    most = maps.physical.shape[2]
    for parts in (None, placement.parts()):
        rows, length = rows_of_turns(maps.physical, maps.replica_count, parts, most + 3)
        assert np.array_equal(rows[:, :, :most], maps.physical)
        assert (rows[:, :, most:] == -1).all()
        assert np.array_equal(length, maps.replica_count)


@pytest.mark.parametrize("width", [16, 100, 1024])
@given(split=splits())
def test_rows_meet_the_shares(width: int, split: tuple[Placement, NDArray[np.int32]]) -> None:
    placement, parts = split
    maps = maps_of(placement)
    rows, length = rows_of_turns(maps.physical, maps.replica_count, parts, width)
    assert (length <= min(width, 256)).all()
    for layer, expert in np.ndindex(length.shape):
        row = rows[layer, expert]
        used, rest = np.split(row, [length[layer, expert]])
        assert (rest == -1).all()
        mine = placement.slots[layer].ravel() == expert
        assert set(used.tolist()) <= set(np.flatnonzero(mine).tolist())
        wanted = np.where(mine, parts[layer].ravel() / WHOLE, 0.0)
        assert np.abs(shares_of(used) - wanted).max() < 1 / min(width, 256) + 2 / WHOLE


@given(splits(), st.integers(0, 99), st.integers(1, 64))
def test_any_stretch_of_turns_is_mixed(
    split: tuple[Placement, NDArray[np.int32]], first: int, turns: int
) -> None:
    placement, parts = split
    maps = maps_of(placement)
    rows, length = rows_of_turns(maps.physical, maps.replica_count, parts, 256)
    for layer, expert in np.ndindex(length.shape):
        used = rows[layer, expert, : length[layer, expert]]
        stretch = used[np.arange(first, first + turns) % used.size]
        share = shares_of(used)
        off = np.abs(np.bincount(stretch, minlength=share.size) - turns * share)
        # Each replica's turns are rounded where the stretch begins and where it ends; so are the
        # others', of which it has its share.
        assert (off <= 1 + share * maps.replica_count[layer, expert]).all()


@given(splits(), st.integers(0, 7))
def test_tables_are_the_engines_rules(
    split: tuple[Placement, NDArray[np.int32]], rank: int
) -> None:
    placement, _ = split
    maps = maps_of(placement)
    rows, length = rows_of_turns(maps.physical, maps.replica_count, None, 16)
    table = at_turns(rows, length, rank + np.arange(32))
    for layer, token, expert in np.ndindex(table.shape):
        replica = (token + rank + expert) % maps.replica_count[layer, expert]
        assert table[layer, token, expert] == maps.physical[layer, expert, replica]
    own = at_turns(rows, length, np.array([rank]))[:, 0]
    assert np.array_equal(own, table[:, 0])


def test_ranks_choose_by_shares() -> None:
    # Expert 0 has three quarters in slot 0 and a quarter in slot 2; the others have one slot.
    placement = Placement(np.array([[[0, 1], [0, 2]]], dtype=np.int32), 3)
    parts = np.array([[[WHOLE * 3 // 4, WHOLE], [WHOLE // 4, WHOLE]]], dtype=np.int32)
    maps = maps_of(placement)
    rows, length = rows_of_turns(maps.physical, maps.replica_count, parts, 64)
    assert length.tolist() == [[4, 1, 1]]
    chosen = at_turns(rows, length, np.arange(8))[0, :, 0]
    assert sorted(chosen.tolist()) == [0] * 6 + [2] * 2


def test_a_table_without_room_is_refused() -> None:
    maps = maps_of(Placement.linear(1, 2, 2, 3))
    with pytest.raises(TransferError, match="3 replicas, the engine's table has room for 2"):
        rows_of_turns(maps.physical, maps.replica_count, None, 2)
