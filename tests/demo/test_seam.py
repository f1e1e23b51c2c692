"""Where the agent attaches: the engine's side of maps and counters, and the hook's of a forward."""

import numpy as np
import pytest
import torch
from torch import Tensor

from eplbd.core.maps import derive_maps
from eplbd.core.messages import Prepare
from eplbd.core.placement import Placement
from eplbd.demo.experts import Experts
from eplbd.demo.maps import ReplicaMaps
from eplbd.demo.model import Batch, Counters, Dense, MoeModel
from eplbd.demo.shape import Shape
from eplbd.demo.twin import Hook
from eplbd.worker.hook import ForwardHook
from eplbd.worker.stager import Engine
from eplbd.worker.torch_ring import TorchCounters

pytestmark = pytest.mark.slow

SHAPE = Shape(layers=3, experts=8, ranks=1, slots_per_rank=8, topk=2, tokens=16, context=4)
LINEAR = Placement.linear(3, 8, 1, 8)


class OwnSlots:
    """The exchange of a group of one rank."""

    def __init__(self, experts: Experts) -> None:
        self._experts = experts

    def mix(self, layer: int, x: Tensor, slots: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        rows, counts = self._experts.run(
            layer, x.repeat_interleave(slots.shape[1], 0), slots.flatten()
        )
        return (rows.view(*slots.shape, -1) * weights[:, :, None]).sum(1), counts


def model(counters: Counters) -> MoeModel:
    experts = Experts(SHAPE, LINEAR.slots[:, 0], 0)
    maps = ReplicaMaps(SHAPE, LINEAR)
    return MoeModel(Dense(SHAPE, 0), experts, maps, OwnSlots(experts), counters)


def batch() -> Batch:
    return Batch(torch.arange(20)[None], torch.arange(16))


def prepare(target: Placement, layers: list[int]) -> Prepare:
    index = np.array(layers, dtype=np.int32)
    maps = derive_maps(target, index)
    return Prepare(
        term=1,
        epoch=1,
        base_digest=LINEAR.digest,
        target_digest=target.digest,
        lane=0,
        rounds=0,
        layers=index,
        slots=target.slots[index],
        transfers=np.zeros((0, 9), dtype=np.int32),
        replica_count=maps.replica_count,
        physical=maps.physical,
        log2phy=maps.log2phy[0],
        expert_map=maps.expert_map[0],
    )


def test_staged_maps_change_nothing_until_they_are_written() -> None:
    engine = model(Counters.zeros(SHAPE))
    seam: Engine = engine
    target = LINEAR.with_layers(np.array([1, 2]), LINEAR.slots[[1, 2]][..., ::-1])
    expected = ReplicaMaps(SHAPE, target)
    tables = engine.maps.physical, engine.maps.slot_expert
    write = seam.stage_maps(prepare(target, [1, 2]))
    assert tables[0].equal(ReplicaMaps(SHAPE, LINEAR).physical)
    write()
    assert tables[0].equal(expected.physical)
    assert tables[1].equal(expected.slot_expert)


def test_a_forward_counts_into_the_ring_that_was_given() -> None:
    ring = TorchCounters(SHAPE.layers, SHAPE.slots_per_rank, device=torch.device("cpu"))
    engine = model(Counters(ring.pass_counts, ring.pass_routed))
    assert engine.forward(batch()).shape == (16, SHAPE.hidden)
    assigned = 16 * SHAPE.topk
    assert ring.pass_counts.sum(1).tolist() == [assigned] * SHAPE.layers
    assert ring.pass_routed.tolist() == [assigned * SHAPE.layers]
    engine.forward(batch())
    assert int(ring.pass_counts.sum()) == 2 * assigned * SHAPE.layers, "a forward resets nothing"


def fits(hook: ForwardHook) -> Hook:
    """Checked by the type checker: the agent's hook is a hook of the pair."""
    return hook
