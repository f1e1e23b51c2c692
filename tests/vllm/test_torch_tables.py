"""The engine's tables, rewritten in place: by epochs, by shares, and back to the first layout."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from eplbd.core.placement import Placement  # noqa: E402
from eplbd.core.plan import Plan  # noqa: E402
from eplbd.core.prepare import write_prepares  # noqa: E402
from eplbd.core.topology import Topology  # noqa: E402
from eplbd_vllm.torch_tables import Tables  # noqa: E402

pytestmark = pytest.mark.slow

LAYERS, EXPERTS, RANKS, PER_RANK = 3, 6, 2, 4


def state() -> SimpleNamespace:
    """The engine's maps, as it makes them: experts in order, then copies of 0 and 1."""
    held = torch.arange(RANKS * PER_RANK) % EXPERTS
    physical = torch.full((EXPERTS, 1024), -1)
    for slot, expert in enumerate(held.tolist()):
        physical[expert, slot // EXPERTS] = slot
    return SimpleNamespace(
        physical_to_logical_map=held.repeat(LAYERS, 1),
        logical_to_physical_map=physical.repeat(LAYERS, 1, 1),
        logical_replica_count=torch.bincount(held).repeat(LAYERS, 1),
    )


def contents(maps: SimpleNamespace) -> list[list[set[int]]]:
    """Slots of each expert of each layer, as a router finds them."""
    return [
        [
            set(maps.logical_to_physical_map[layer, expert, :count].tolist())
            for expert, count in enumerate(maps.logical_replica_count[layer].tolist())
        ]
        for layer in range(LAYERS)
    ]


def expected(placement: Placement) -> list[list[set[int]]]:
    flat = placement.slots.reshape(LAYERS, -1)
    return [[set(np.flatnonzero(row == e).tolist()) for e in range(EXPERTS)] for row in flat]


def moved(seed: int) -> Placement:
    """Another placement of every layer, no expert twice on a rank."""
    rng = np.random.default_rng(seed)
    slots = np.stack(
        [
            np.stack([np.r_[rng.permutation(3), 3], np.r_[rng.permutation(3) + 3, 0]])
            for _ in range(LAYERS)
        ]
    ).astype(np.int32)
    return Placement(slots, EXPERTS)


def test_it_reads_what_is_in_force() -> None:
    placement = Tables(state()).placement(RANKS)
    assert placement == Placement.linear(LAYERS, EXPERTS, RANKS, PER_RANK)


def test_epochs_lead_to_the_target_and_addresses_stay() -> None:
    maps = state()
    tables, current, target = Tables(maps), Tables(maps).placement(RANKS), moved(1)
    before = [tensor.data_ptr() for tensor in vars(maps).values()]
    plan = Plan(current, target, Topology(RANKS, PER_RANK, (0, 0)), np.ones(LAYERS))
    epochs = 0
    while (epoch := plan.next_epoch(2)) is not None:
        write = tables.stage_maps(write_prepares(epoch, term=1, epoch=epochs + 1, lane=0)[0])
        assert contents(maps) == expected(tables.placement(RANKS)), "staging changed a table"
        write()
        assert tables.placement(RANKS) == epoch.target
        assert contents(maps) == expected(epoch.target)
        plan.settled()
        epochs += 1
    assert epochs > 1
    assert np.array_equal(tables.placement(RANKS).hosts(), target.hosts())
    assert before == [tensor.data_ptr() for tensor in vars(maps).values()]


def test_reset_is_the_first_layout_again() -> None:
    maps = state()
    tables = Tables(maps)
    first = tables.placement(RANKS)
    tables.reset(moved(2))
    assert contents(maps) == expected(moved(2))
    tables.reset(first)
    assert contents(maps) == contents(state())
    assert torch.equal(maps.physical_to_logical_map, state().physical_to_logical_map)
