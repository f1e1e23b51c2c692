"""What an agent refuses to take on, one wrong thing at a time."""

from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core import messages as m
from eplbd.core.placement import Placement
from eplbd.core.plan import Plan
from eplbd.core.prepare import check_prepare, write_prepares
from eplbd.core.rounds import Col
from eplbd.core.shares import WHOLE
from eplbd.core.topology import Topology
from eplbd.errors import PlacementError
from tests.sim.world import Shape, World

CURRENT = Placement.linear(3, 6, 3, 3)

Table: TypeAlias = NDArray[np.int32]


def prepares(seed: int = 1, *, weighted: bool = False) -> list[m.Prepare]:
    world = World(shape=Shape(layers=3, experts=6, ranks=3, slots_per_rank=3), seed=seed)
    rows = np.stack([world.shuffled() for _ in range(3)])
    target = Placement(rows, 6, world.uneven(rows) if weighted else None)
    epoch = Plan(CURRENT, target, Topology.single_node(3, 3)).next_epoch(2)
    assert epoch is not None
    return write_prepares(epoch, term=1, epoch=1, lane=0)


def changed(array: Table, index: tuple[int, ...], value: int) -> Table:
    copy = array.copy()
    copy[index] = value
    return copy


@given(seed=st.integers(0, 500), weighted=st.booleans())
def test_every_rank_takes_on_what_the_leader_writes(seed: int, weighted: bool) -> None:
    for rank, message in enumerate(prepares(seed, weighted=weighted)):
        target = check_prepare(message, CURRENT, rank)
        assert target.digest == message.target_digest
        assert target.shares is None or message.parts is not None


def only_shares() -> list[m.Prepare]:
    parts = CURRENT.parts().copy()
    parts[1, 0, 0], parts[1, 2, 0] = 60_000, WHOLE - 60_000
    target = Placement.split(CURRENT.slots, 6, parts)
    epoch = Plan(CURRENT, target, Topology.single_node(3, 3)).next_epoch()
    assert epoch is not None
    return write_prepares(epoch, term=1, epoch=1, lane=0)


def test_new_shares_alone_are_taken_on() -> None:
    for rank, message in enumerate(only_shares()):
        assert (message.rounds, len(message.transfers)) == (0, 0)
        target = check_prepare(message, CURRENT, rank)
        assert target.digest == message.target_digest
        assert target.digest != CURRENT.digest
        assert np.array_equal(target.slots, CURRENT.slots)


def test_layers_that_split_evenly_carry_no_parts() -> None:
    parts = CURRENT.parts().copy()
    parts[1, 0, 0], parts[1, 2, 0] = 60_000, WHOLE - 60_000
    weighted = Placement.split(CURRENT.slots, 6, parts)
    epoch = Plan(weighted, CURRENT, Topology.single_node(3, 3)).next_epoch()
    assert epoch is not None
    for rank, message in enumerate(write_prepares(epoch, term=1, epoch=1, lane=0)):
        assert message.parts is None
        assert check_prepare(message, weighted, rank) == CURRENT


@pytest.mark.parametrize(
    ("at", "value", "complaint"),
    [
        ((0, 0, 0), -1, "parts: -1 to"),
        ((0, 0, 0), WHOLE + 1, f"to {WHOLE + 1}, expected 0 to {WHOLE}"),
        ((0, 0, 0), 59_999, f"row 0, expert 0: its slots' do not sum to {WHOLE}"),
        ((0, 1, 0), WHOLE - 1, "row 0, expert 3: "),
    ],
)
def test_parts_that_are_no_whole(at: tuple[int, ...], value: int, complaint: str) -> None:
    message = only_shares()[1]
    assert message.parts is not None
    wrong = replace(message, parts=changed(message.parts, at, value))
    with pytest.raises(PlacementError, match=complaint):
        check_prepare(wrong, CURRENT, 1)
    with pytest.raises(PlacementError, match=r"parts: shape \(1, 2, 3\), expected \(1, 3, 3\)"):
        check_prepare(replace(message, parts=message.parts[:, :2]), CURRENT, 1)


def test_parts_other_than_announced() -> None:
    message = only_shares()[1]
    assert message.parts is not None
    swapped = message.parts[:, ::-1]
    with pytest.raises(PlacementError, match="announced was"):
        check_prepare(replace(message, parts=swapped), CURRENT, 1)
    with pytest.raises(PlacementError, match="announced was"):
        check_prepare(replace(message, parts=None), CURRENT, 1)


@given(seed=st.integers(0, 500), data=st.data())
def test_no_single_wrong_figure_gets_through(seed: int, data: st.DataObject) -> None:
    """Whatever entry of whatever table is changed, the agent refuses."""
    rank = data.draw(st.integers(0, 2))
    message = prepares(seed)[rank]
    name = data.draw(st.sampled_from(["slots", "physical", "log2phy", "replica_count"]))
    table = getattr(message, name)
    index = tuple(data.draw(st.integers(0, size - 1)) for size in table.shape)
    value = data.draw(st.integers(-2, 12).filter(lambda v: v != table[index]))
    held = message.slots.reshape(len(message.layers), -1)
    layer, expert = index[0], index[1]
    if name in ("log2phy", "physical") and 0 <= value < 9 and held[layer, value] == expert:
        return  # another slot that holds the expert is as true as the one that was meant
    tables: dict[str, Any] = {name: changed(table, index, value)}
    wrong = replace(message, **tables)
    with pytest.raises(PlacementError):
        check_prepare(wrong, CURRENT, rank)


def with_incoming(rank: int) -> tuple[m.Prepare, int]:
    message = prepares()[rank]
    rows = np.flatnonzero(message.transfers[:, Col.DST] == rank)
    assert rows.size
    return message, int(rows[0])


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        (Col.EXPERT, 0, "expert"),
        (Col.DST_SLOT, 7, "bounds"),
        (Col.LAYER, 9, "bounds"),
        (Col.ROUND, 99, "bounds"),
        (Col.SRC, 3, "bounds"),
        (Col.SRC_SLOT, -2, "bounds"),
    ],
)
def test_wrong_transfer(column: Col, value: int, complaint: str) -> None:
    message, row = with_incoming(1)
    if message.transfers[row, column] == value:
        value += 1
    wrong = replace(message, transfers=changed(message.transfers, (row, column), value))
    with pytest.raises(PlacementError, match=complaint):
        check_prepare(wrong, CURRENT, 1)


def test_slot_that_no_transfer_fills() -> None:
    message, row = with_incoming(1)
    wrong = replace(message, transfers=np.delete(message.transfers, row, axis=0))
    with pytest.raises(PlacementError, match="filled by 0 transfers, expected 1") as caught:
        check_prepare(wrong, CURRENT, 1)
    assert caught.value.rank == 1
    assert caught.value.layer is not None


def test_two_transfers_in_one_buffer() -> None:
    for rank, message in enumerate(prepares(3)):
        mine = np.flatnonzero(message.transfers[:, Col.DST] == rank)
        if mine.size < 2:
            continue
        first, second = mine[:2]
        buffer = int(message.transfers[first, Col.DST_BUFFER])
        table = changed(message.transfers, (int(second), Col.DST_BUFFER), buffer)
        with pytest.raises(PlacementError, match="share a staging buffer"):
            check_prepare(replace(message, transfers=table), CURRENT, rank)
        return
    pytest.fail("no rank receives two experts: choose another seed")


def test_plan_from_another_map() -> None:
    other = CURRENT.with_layers(np.array([0]), CURRENT.slots[:1, :, ::-1])
    with pytest.raises(PlacementError, match="plan from the map in force"):
        check_prepare(prepares()[0], other, 0)


def test_work_of_another_rank() -> None:
    message = prepares()[1]
    foreign = message.transfers[
        (message.transfers[:, Col.SRC] != 0) & (message.transfers[:, Col.DST] != 0)
    ]
    assert len(foreign)
    with pytest.raises(PlacementError, match="concerns another rank"):
        check_prepare(message, CURRENT, 0)


@pytest.mark.parametrize("layers", [[], [1, 0, 2], [0, 0, 1], [0, 1, 3], [-1, 0, 1]])
def test_layers(layers: list[int]) -> None:
    wrong = replace(prepares()[0], layers=np.array(layers, dtype=np.int32))
    with pytest.raises(PlacementError, match=r"ascending within 0\.\.2"):
        check_prepare(wrong, CURRENT, 0)
