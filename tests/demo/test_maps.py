"""Replica tables: written in place, whole, and spread evenly over the replicas."""

import numpy as np
import pytest
import torch

from eplbd.core.maps import derive_maps
from eplbd.core.placement import Placement
from eplbd.core.shares import WHOLE
from eplbd.demo.maps import ReplicaMaps, spread_of
from eplbd.demo.shape import Shape
from eplbd.errors import LocalProtocolError, TransferError

pytestmark = pytest.mark.slow

SHAPE = Shape(layers=3, experts=8, ranks=4, slots_per_rank=3)
LINEAR = Placement.linear(3, 8, 4, 3)
HOT = LINEAR.with_layers(
    np.array([1]), np.array([[[0, 1, 2], [3, 0, 4], [0, 5, 6], [7, 0, 1]]], dtype=np.int32)
)


def tables(maps: ReplicaMaps) -> list[object]:
    every = (maps.physical, maps.bounds, maps.replica_count, maps.slot_expert)
    return [table.tolist() for table in every]


def test_tables_are_those_of_the_placement() -> None:
    maps = ReplicaMaps(SHAPE, HOT)
    assert maps.slot_expert.tolist() == HOT.slots.tolist()
    assert maps.replica_count.tolist() == HOT.replicas().tolist()
    assert maps.physical[1, 0].tolist() == [0, 4, 6, 10]
    assert maps.physical[0, 0].tolist() == [0, 8, -1, -1]


def test_an_update_of_some_layers_equals_a_fresh_table_at_the_same_address() -> None:
    maps = ReplicaMaps(SHAPE, LINEAR)
    views = (maps.physical, maps.bounds, maps.replica_count, maps.slot_expert)
    before = [view.data_ptr() for view in views]
    layers = np.array([1])
    new = derive_maps(HOT, layers)
    update = maps.stage(layers, HOT.slots[layers], new.replica_count, new.physical)
    assert tables(maps) == tables(ReplicaMaps(SHAPE, LINEAR)), "staging must not change anything"
    maps.write(update)
    assert tables(maps) == tables(ReplicaMaps(SHAPE, HOT))
    assert [view.data_ptr() for view in views] == before
    assert maps.physical is views[0]


def test_tokens_spread_evenly_over_replicas_and_never_leave_them() -> None:
    maps = ReplicaMaps(SHAPE, HOT)
    experts = torch.arange(8).expand(240, 8)
    slots = maps.choose(1, experts, spread_of(torch.arange(240)))
    for expert in range(8):
        count = int(maps.replica_count[1, expert])
        found, tokens = np.unique(slots[:, expert].numpy(), return_counts=True)
        assert found.tolist() == maps.physical[1, expert, :count].tolist()
        assert tokens.max() - tokens.min() <= 3, f"expert {expert}: {tokens}"


def test_a_broken_entry_names_another_expert_on_another_rank() -> None:
    maps = ReplicaMaps(SHAPE, HOT)
    whole = tables(ReplicaMaps(SHAPE, HOT))
    broken = maps.break_entry(1, 0, rank=3)
    assert (broken.was, broken.now // SHAPE.slots_per_rank) == (10, 0)
    assert int(maps.slot_expert[1].flatten()[broken.now]) != 0
    assert maps.physical[1, 0].tolist() == [0, 4, 6, broken.now]
    maps.physical[1, 0, 3] = broken.was
    assert tables(maps) == whole, "more than one entry was changed"


def test_only_an_entry_of_the_rank_itself_can_be_broken() -> None:
    with pytest.raises(LocalProtocolError, match="rank 2 holds no replica of layer 1, expert 7"):
        ReplicaMaps(SHAPE, HOT).break_entry(1, 7, rank=2)


def split(parts: dict[int, int]) -> Placement:
    """`HOT` with the parts that some slots of its second layer take."""
    given = HOT.parts().copy()
    for slot, part in parts.items():
        given[1, slot // 3, slot % 3] = part
    return Placement.split(HOT.slots, 8, given)


def test_tokens_follow_the_shares() -> None:
    """Expert 0 in slots 0, 4, 6 and 10: a half, nothing, and two quarters."""
    shares = split({0: WHOLE // 2, 4: 0, 6: WHOLE // 4, 10: WHOLE // 4})
    maps = ReplicaMaps(SHAPE, shares)
    slots = maps.choose(1, torch.zeros(960, 1, dtype=torch.int64), spread_of(torch.arange(960)))
    found, tokens = np.unique(slots.numpy(), return_counts=True)
    assert found.tolist() == [0, 6, 10]
    assert np.abs(tokens - np.array([480, 240, 240])).max() <= 5
    for rank in range(4):
        assert maps.parts(1, rank).tolist() == shares.parts()[1, rank].tolist()


def test_every_part_of_a_whole_finds_its_replica() -> None:
    """Bounds are met exactly: the last token of a share and the first of the next."""
    maps = ReplicaMaps(SHAPE, split({0: 1, 4: 0, 6: WHOLE - 2, 10: 1}))
    spread = torch.tensor([[0], [1], [WHOLE - 2], [WHOLE - 1]])
    slots = maps.choose(1, torch.zeros(4, 1, dtype=torch.int64), spread)
    assert slots.flatten().tolist() == [0, 6, 6, 10]


def test_the_spread_is_below_a_whole() -> None:
    spread = spread_of(torch.arange(100_000))
    assert 0 <= int(spread.min()) < 10
    assert WHOLE - 10 < int(spread.max()) < WHOLE


def test_an_update_brings_its_shares() -> None:
    maps, target = ReplicaMaps(SHAPE, HOT), split({0: WHOLE, 4: 0, 6: 0, 10: 0})
    layers = np.array([1])
    new = derive_maps(target, layers)
    tables = new.replica_count, new.physical
    maps.write(maps.stage(layers, target.slots[layers], *tables, target.parts()[layers]))
    assert maps.bounds.equal(ReplicaMaps(SHAPE, target).bounds)
    maps.write(maps.stage(layers, target.slots[layers], *tables))
    assert maps.bounds.equal(ReplicaMaps(SHAPE, HOT).bounds)


def test_more_replicas_than_ranks_are_refused() -> None:
    twice = HOT.with_layers(
        np.array([1]), np.array([[[0, 0, 2], [3, 0, 4], [0, 5, 6], [7, 0, 1]]], dtype=np.int32)
    )
    with pytest.raises(TransferError, match="5 replicas"):
        ReplicaMaps(SHAPE, twice)
