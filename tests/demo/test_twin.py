"""The engine on real ranks: exact whatever the placement, wrong as soon as a map or a weight is.

One set of processes per number of ranks observes everything; the tests read what it found.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eplbd.core.maps import derive_maps
from eplbd.core.messages import Dispatch
from eplbd.core.placement import Placement, validate
from eplbd.demo.experts import Experts
from eplbd.demo.model import Batch, Dense, normalised
from eplbd.demo.shape import Shape
from eplbd.demo.traffic import Schedule, Traffic
from eplbd.demo.twin import Groups, NoHook, Pair
from tests.core.arrangements import weighted
from tests.demo.ranks import on_ranks

pytestmark = pytest.mark.slow

RANKS = (2, 4)
BROKEN_LAYER = 1
STEPS = 4


def shape_of(ranks: int) -> Shape:
    return Shape(
        layers=3, experts=16, ranks=ranks, slots_per_rank=16 // ranks + 2, tokens=24, context=8
    )


def shuffled(shape: Shape, seed: int) -> Placement:
    """Every slot elsewhere than in the linear layout; one expert of each layer is on all ranks.

    Replicas take uneven shares, as a weighted policy would have it.
    """
    rng = np.random.default_rng(seed)
    rows = np.empty((shape.layers, shape.ranks, shape.slots_per_rank), dtype=np.int32)
    for layer in range(shape.layers):
        homes = rng.permutation(shape.experts).reshape(shape.ranks, -1)
        for rank in range(shape.ranks):
            others = np.setdiff1d(np.arange(shape.experts), homes[rank])
            everywhere = homes[0, 0] if rank else rng.choice(others)
            more = rng.choice(np.setdiff1d(others, everywhere), shape.slots_per_rank)
            extra = [everywhere, *more][: shape.slots_per_rank - homes.shape[1]]
            rows[layer, rank] = rng.permutation([*homes[rank], *extra])
    placement = validate(rows, experts=shape.experts, topology=shape.topology, layers=shape.layers)
    return weighted(placement, rng)


@dataclass
class Findings:
    """What one rank saw in one dispatch mode."""

    shuffled: list[bool] = field(default_factory=list)
    moved: list[bool] = field(default_factory=list)
    idle: list[bool] = field(default_factory=list)
    broken: list[bool] = field(default_factory=list)
    mended: list[bool] = field(default_factory=list)
    weights_left: bool = True
    scales_left: bool = True
    addresses_kept: bool = False
    live_load: list[list[int]] = field(default_factory=list)
    twin_load: list[list[int]] = field(default_factory=list)
    reference_error: float = float("inf")
    received: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    twin_received: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    routed: int = 0
    forced_received: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    dummy_received: int = -1


def move(pair: Pair, rank: int, target: Placement, layers: list[int]) -> None:
    """Put `target` in force in some layers, weights first, as an epoch does."""
    experts = pair.live.experts
    for layer in layers:
        for slot, expert in enumerate(target.slots[layer, rank].tolist()):
            experts.generate(layer, slot, expert)
    write_maps(pair, target, layers)


def write_maps(pair: Pair, target: Placement, layers: list[int]) -> None:
    index = np.array(layers)
    new, maps = derive_maps(target, index), pair.live.maps
    tables = new.replica_count, new.physical
    maps.write(maps.stage(index, target.slots[index], *tables, target.parts()[index]))


def addresses(pair: Pair) -> list[int]:
    maps = pair.live.maps
    tables = [maps.physical, maps.bounds, maps.replica_count, maps.slot_expert]
    weights = [t for layer in pair.live.experts.layers for t in layer.named().values()]
    return [t.data_ptr() for t in (*tables, *weights, pair.live.counters.received)]


def forced_routing(shape: Shape) -> NDArray[np.int64]:
    """`[layers, tokens of all ranks, topk]`: routing that the numpy recount knows."""
    rng = np.random.default_rng(9)
    keys = rng.random((shape.layers, shape.ranks * shape.tokens, shape.experts)) ** 3
    return np.argsort(keys, axis=-1)[..., : shape.topk]


def forced_batch(shape: Shape, mode: Dispatch, rank: int, batch: Batch) -> Batch:
    routing = forced_routing(shape)
    if mode is Dispatch.ALL_TO_ALL:
        routing = routing[:, rank * shape.tokens : (rank + 1) * shape.tokens]
    return Batch(batch.ids, batch.index, torch.from_numpy(np.ascontiguousarray(routing)))


def reference(shape: Shape, batch: Batch) -> torch.Tensor:
    """The model without slots, maps, tiles or ranks: every expert in one process."""
    every = np.broadcast_to(np.arange(shape.experts, dtype=np.int32), (shape.layers, shape.experts))
    wide = Shape(layers=shape.layers, experts=shape.experts, slots_per_rank=shape.experts, ranks=1)
    dense, experts = Dense(shape, 0), Experts(wide, every, 0)
    x = dense.embed(batch.ids)
    for layer, held in enumerate(experts.layers):
        x = x + normalised(x) @ dense.mix[layer]
        y = normalised(x)
        inner = torch.einsum("nh,efh->nef", y, held.w13)
        gate, up = inner[..., : shape.ffn], inner[..., shape.ffn :]
        outer = torch.einsum("nef,ehf->neh", gate * torch.sigmoid(gate) * up, held.w2)
        value, chosen = (y @ dense.gates[layer]).topk(shape.topk, dim=-1)
        weight = torch.zeros_like(y @ dense.gates[layer]).scatter(1, chosen, value.softmax(-1))
        x = x + torch.einsum("neh,ne->nh", outer * held.w2_scale, weight)
    return x


def observe(groups: Groups) -> dict[Dispatch, Findings]:
    return {mode: observe_mode(groups, mode) for mode in Dispatch}


def observe_mode(groups: Groups, mode: Dispatch) -> Findings:
    rank, shape, seen = groups.live.rank(), shape_of(groups.live.size()), Findings()
    traffic = Traffic(shape, mode, rank, Schedule(steps=2))
    linear = Placement.linear(shape.layers, shape.experts, shape.ranks, shape.slots_per_rank)
    start = shuffled(shape, 1)
    pair = Pair(shape, mode, groups, start, origin=linear)
    before = addresses(pair)

    def steps(*batches: Batch) -> list[bool]:
        taken = [pair.step(batch, NoHook()) for batch in batches]
        seen.live_load += [step.live_load for step in taken]
        seen.twin_load += [step.twin_load for step in taken]
        return [step.identical for step in taken]

    seen.shuffled = steps(*(traffic.batch(step) for step in range(STEPS)))
    seen.received = pair.live.counters.received.numpy().copy()
    seen.twin_received = pair.twin.counters.received.numpy().copy()
    seen.routed = int(pair.live.counters.routed)
    output = pair.live.forward(traffic.batch(STEPS))
    seen.reference_error = float((output - reference(shape, traffic.batch(STEPS))).abs().max())

    pair.live.counters.received.zero_()
    seen.idle = steps(traffic.dummy())
    seen.dummy_received = int(pair.live.counters.received.sum())
    one_idle = mode is Dispatch.ALL_TO_ALL and rank == 0
    seen.idle += steps(traffic.dummy() if one_idle else traffic.batch(0))

    pair.live.counters.received.zero_()
    pair.live.forward(forced_batch(shape, mode, rank, traffic.batch(0)))
    seen.forced_received = pair.live.counters.received.numpy().copy()

    observe_changes(pair, rank, start, seen, traffic)
    seen.addresses_kept = addresses(pair) == before
    return seen


def observe_changes(
    pair: Pair, rank: int, start: Placement, seen: Findings, traffic: Traffic
) -> None:
    """Moves of some layers; then one fault after the other, each mended before the next."""
    batches = [traffic.batch(step) for step in range(STEPS)]

    def steps() -> list[bool]:
        return [pair.step(batch, NoHook()).identical for batch in batches]

    second = shuffled(shape_of(start.ranks), 2)
    chosen = np.array([0, 2])
    target = start.with_layers(chosen, second.slots[chosen], second.parts()[chosen])
    move(pair, rank, target, [0, 2])
    seen.moved = steps()

    if rank == 0:
        pair.break_map(BROKEN_LAYER)
    seen.broken = steps()
    write_maps(pair, target, [BROKEN_LAYER])
    seen.mended = steps()

    write_maps(pair, second, [1])
    seen.weights_left = all(steps())
    scales = pair.live.experts.layers[1].w2_scale
    left = scales.clone()
    move(pair, rank, second, [1])
    scales.copy_(left)
    seen.scales_left = all(steps())
    move(pair, rank, second, [1])
    seen.mended += steps()


@cache
def findings(ranks: int) -> list[dict[Dispatch, Findings]]:
    return on_ranks(ranks, observe)


@pytest.fixture(
    params=[(ranks, mode) for ranks in RANKS for mode in Dispatch], ids=lambda c: f"{c[0]}-{c[1]}"
)
def case(request: pytest.FixtureRequest) -> tuple[Shape, Dispatch, list[Findings]]:
    ranks, mode = request.param
    return shape_of(ranks), mode, [found[mode] for found in findings(ranks)]


Case = tuple[Shape, Dispatch, list[Findings]]


def test_outputs_are_the_same_bits_under_another_placement(case: Case) -> None:
    shape, _, found = case
    linear = Placement.linear(shape.layers, shape.experts, shape.ranks, shape.slots_per_rank)
    assert (shuffled(shape, 1).slots != linear.slots).any(1).all()
    assert (shuffled(shape, 1).replicas().max(1) == shape.ranks).all()
    for seen in found:
        assert seen.shuffled == [True] * STEPS


def test_outputs_stay_the_same_bits_after_moves_written_in_place(case: Case) -> None:
    for seen in case[2]:
        assert seen.moved == [True] * STEPS
        assert seen.addresses_kept


def test_outputs_are_those_of_the_model_without_ranks(case: Case) -> None:
    for seen in case[2]:
        assert seen.reference_error < 1e-4


def test_a_broken_map_shows(case: Case) -> None:
    _, mode, found = case
    at_culprit, *elsewhere = [all(seen.broken) for seen in found]
    assert not at_culprit
    if mode is Dispatch.ALL_TO_ALL:
        assert all(elsewhere), "another rank's tokens do not pass the culprit's map"
    else:
        assert not any(elsewhere), "all ranks get the same corrupt output"
    for seen in found:
        assert all(seen.mended), "writing the map again must end it"


def test_weights_or_scales_left_behind_show(case: Case) -> None:
    _, _, found = case
    assert not all(seen.weights_left for seen in found)
    assert not all(seen.scales_left for seen in found)


def test_received_equals_routed(case: Case) -> None:
    shape, mode, found = case
    assigned = STEPS * shape.layers * shape.ranks * shape.tokens * shape.topk
    assert sum(int(seen.received.sum()) for seen in found) == assigned
    if mode is Dispatch.ALL_TO_ALL:
        assert [seen.routed for seen in found] == [assigned // shape.ranks] * shape.ranks
    else:
        assert [seen.routed for seen in found] == [assigned] * shape.ranks


def test_every_step_has_its_own_load_on_both_placements(case: Case) -> None:
    shape, mode, found = case
    full = [shape.ranks * shape.tokens * shape.topk] * shape.layers
    less = (shape.ranks - 1) if mode is Dispatch.ALL_TO_ALL else shape.ranks
    one_idle = [less * shape.tokens * shape.topk] * shape.layers
    expected = [*([full] * STEPS), [0] * shape.layers, one_idle]
    live, twin = (
        np.sum([getattr(seen, name) for seen in found], axis=0)
        for name in ("live_load", "twin_load")
    )
    assert live.tolist() == twin.tolist() == expected
    assert [seen.live_load for seen in found] != [seen.twin_load for seen in found]


def logical(shape: Shape, placement: Placement, received: list[NDArray[np.int32]]) -> list[object]:
    heat = np.zeros((shape.layers, shape.experts), dtype=np.int64)
    for rank, counts in enumerate(received):
        for layer in range(shape.layers):
            np.add.at(heat[layer], placement.slots[layer, rank], counts[layer])
    return list(heat.tolist())


def test_both_placements_count_the_same_heat(case: Case) -> None:
    shape, _, found = case
    linear = Placement.linear(shape.layers, shape.experts, shape.ranks, shape.slots_per_rank)
    live = logical(shape, shuffled(shape, 1), [seen.received for seen in found])
    twin = logical(shape, linear, [seen.twin_received for seen in found])
    assert live == twin


def test_counts_equal_a_recount_from_the_routing(case: Case) -> None:
    shape, _, found = case
    placement = shuffled(shape, 1)
    parts = placement.parts().reshape(shape.layers, -1)
    token = np.arange(shape.ranks * shape.tokens, dtype=np.uint64)
    word = (token * np.uint64(2654435761)) % np.uint64(1 << 32)
    expected = np.zeros((shape.layers, shape.slots), dtype=np.int64)
    for layer, expert in np.ndindex(shape.layers, shape.experts):
        slots = np.flatnonzero(placement.slots[layer] == expert)
        chosen = (forced_routing(shape)[layer] == expert).any(axis=1)
        ends = parts[layer, slots].cumsum()
        taken = np.searchsorted(ends, word[chosen] // np.uint64(1 << 16), side="right")
        np.add.at(expected[layer], slots[taken], 1)
    received = np.concatenate([seen.forced_received for seen in found], axis=1)
    np.testing.assert_array_equal(received, expected)


def test_an_idle_rank_dispatches_and_counts_nothing(case: Case) -> None:
    for seen in case[2]:
        assert seen.idle == [True, True]
        assert seen.dummy_received == 0
