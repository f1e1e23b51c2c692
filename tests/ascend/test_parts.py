"""The adapter's parts by themselves: maps, heat, tensors, records, routing tables, releases."""

import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from eplbd.core.maps import derive_maps
from eplbd.core.messages import Prepare
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError, TransferError
from eplbd.worker.torch_experts import PlainImages
from eplbd_vllm.ascend.conditions import of_layers
from eplbd_vllm.ascend.engine import ExpertWeightKey, of_release
from eplbd_vllm.ascend.record import MapRecord, as_expert_map
from eplbd_vllm.ascend.torch_formats import NpuImages, memory_of
from eplbd_vllm.ascend.torch_heat import Heat
from eplbd_vllm.ascend.torch_maps import choose, expert_maps, placement_of
from eplbd_vllm.ascend.torch_tables import RoutingTables
from eplbd_vllm.ascend.torch_weights import check_engine_table, expert_tensors

pytestmark = pytest.mark.slow

Foreign = Any
"""A stand-in for an object of the engine."""


def layer(slots: int = 3, **more: object) -> Foreign:
    made = SimpleNamespace(
        local_num_experts=slots,
        ep_rank=0,
        dynamic_eplb=True,
        multi_stage=True,
        moe_load=torch.zeros((5, slots), dtype=torch.int32),
        log2phy=torch.zeros(4, dtype=torch.int32),
        global_expert_map=torch.zeros((2, 4), dtype=torch.int32),
        w13_weight=torch.zeros(slots, 4, 2),
        w2_weight=torch.zeros(slots, 2, 4),
    )
    vars(made).update(more)
    return made


def adaptor(*layers: Foreign, quantisation: str = "NONE") -> Foreign:
    key = (SimpleNamespace(name=quantisation), False)
    return SimpleNamespace(
        moe_layers=layers,
        param_dict={},
        expert_weight_key_per_layer=dict.fromkeys(range(len(layers)), key),
    )


class TestMaps:
    @pytest.mark.parametrize("tp_size", [1, 2, 4])
    def test_choice_is_one_of_the_replicas_and_turns(self, tp_size: int) -> None:
        placement = Placement(np.array([[[0, 1], [0, 2], [0, 3], [0, 1]]], dtype=np.int32), 4)
        maps = derive_maps(placement)
        flat = placement.slots.reshape(1, -1)
        rows = [choose(maps.physical, maps.replica_count, rank, tp_size) for rank in range(4)]
        for row in rows:
            assert np.take_along_axis(flat, row, 1).tolist() == [[0, 1, 2, 3]]
        assert len({int(row[0, 0]) for row in rows}) > 1, "ranks take turns"

    def test_expert_maps_are_the_inverse_of_slots(self) -> None:
        slots = np.array([[[2, 0], [1, 2]]], dtype=np.int32)
        assert expert_maps(slots, 3).tolist() == [[[1, -1, 0], [-1, 0, 1]]]
        engine = SimpleNamespace(
            get_global_expert_map=lambda: torch.from_numpy(expert_maps(slots, 3))
        )
        found = placement_of(engine)
        assert found == Placement(slots, 3)

    def test_a_slot_that_the_maps_cannot_name_is_refused(self) -> None:
        engine = SimpleNamespace(get_global_expert_map=lambda: torch.tensor([[[0, 2], [-1, 0]]]))
        with pytest.raises(ConfigError, match="layer 0, rank 0, slot 1 holds an expert a second"):
            placement_of(engine)


class TestHeat:
    def test_each_step_is_what_its_forward_added(self) -> None:
        layers = [layer(), layer()]
        heat = Heat(layers)
        assert layers[0].multi_stage, "nothing is changed before the ranks agree"
        heat.take(layers)
        assert not layers[0].multi_stage
        layers[0].moe_load.add_(torch.tensor([1, 2, 3]))
        layers[1].moe_load.add_(torch.tensor([0, 0, 9]))
        heat.collect()
        heat.counters.keep(0, 0)
        heat.collect()
        heat.counters.keep(0, 1)
        layers[0].moe_load.add_(7)
        heat.drop()
        heat.counters.ship(0)
        counts, routed = heat.counters.read(0, 2)
        assert counts.tolist() == [[[1, 2, 3], [0, 0, 9]], [[0] * 3, [0] * 3]]
        assert routed.tolist() == [15, 0]
        assert layers[0].moe_load.tolist() == [0, 0, 0]


class TestTensors:
    def test_biases_move_as_well(self) -> None:
        found = expert_tensors(adaptor(layer(w13_bias=torch.zeros(3, 4))), PlainImages())
        assert found.names(0) == ("w13_weight", "w2_weight", "w13_bias")

    def test_transposed_stacks_move_as_the_memory_they_are(self) -> None:
        seen = torch.zeros(3, 4, 2).transpose(1, 2)
        assert memory_of(seen).is_contiguous()
        assert memory_of(seen).data_ptr() == seen.data_ptr()
        expert_tensors(adaptor(layer(w13_weight=seen)), PlainImages())

    @pytest.mark.parametrize(
        ("made", "sentence"),
        [
            (lambda: adaptor(layer(), quantisation="W4A16"), "W4A16 without fused MC2 are not des"),
            (lambda: adaptor(layer(w13_scale=torch.ones(3, 1))), "w13_scale float32.3, 1. has one"),
            (lambda: adaptor(layer(packed=[torch.ones(1)] * 3)), "packed has one entry per slot"),
            (lambda: adaptor(layer(w2_weight=None)), "layer 0 has no 'w2_weight'"),
        ],
    )
    def test_what_would_stay_behind_is_refused(
        self, made: Callable[[], Foreign], sentence: str
    ) -> None:
        with pytest.raises(TransferError, match=sentence):
            expert_tensors(made(), PlainImages())

    def test_a_stack_in_a_private_format_is_refused(self) -> None:
        npu = SimpleNamespace(get_npu_format=lambda _: 29, npu_format_cast=None)
        with pytest.raises(TransferError, match="VLLM_ASCEND_ENABLE_NZ=0"):
            expert_tensors(adaptor(layer()), NpuImages(npu))

    def test_an_engine_that_moves_something_else_is_refused(self) -> None:
        class QuantType(enum.Enum):
            W8A8 = 1

        key: tuple[ExpertWeightKey, bool] = (QuantType.W8A8, False)
        table = {key: ("w13_weight_list", "w2_weight_list")}
        with pytest.raises(TransferError, match="vllm-ascend moves w13_weight_list, w2_weight_li"):
            check_engine_table(table)


def test_conditions_name_the_layer_and_the_remedy() -> None:
    nothing: frozenset[str] = frozenset()
    assert of_layers([layer(), layer()], nothing, 0) == ""
    assert of_layers([], nothing, 0).startswith("the model has no layers of experts")
    assert of_layers([layer(), layer(log2phy=None)], nothing, 0).startswith("layer 1 has no slots")
    assert "a drafter" in of_layers([layer(), layer(slots=4)], nothing, 0)
    assert "mix_placement" in of_layers([layer(mix_placement=True)], nothing, 0)
    assert of_layers([layer()], frozenset({"ALLGATHER"}), 0) == ""
    assert "all-gather" in of_layers([layer()], frozenset({"MC2", "ALLGATHER"}), 2)


def test_releases() -> None:
    assert of_release("0.23.0.post1", unverified=False) == ""
    assert "EPLBD_UNVERIFIED=1" in of_release("0.24.0", unverified=False)
    assert of_release("0.24.0", unverified=True) == ""


def test_the_record_is_the_newest_placement(tmp_path: Path) -> None:
    path = tmp_path / "new" / "map.json"
    record = MapRecord(path)
    placements = [Placement.linear(2, 4, 2, width) for width in (2, 3)]
    for placement in placements:
        record.put(placement)
    record.close()
    assert json.loads(path.read_text()) == as_expert_map(placements[-1])
    assert [each.name for each in path.parent.iterdir()] == ["map.json"]


class TestRoutingTables:
    """The rule of `build_expert_replica_routing_table`, written out token by token."""

    def table(self, placement: Placement, index: int, rank: int, rows: int) -> Foreign:
        maps = derive_maps(placement)
        physical, count = maps.physical[index], maps.replica_count[index]
        made = [
            [int(physical[e, (t + rank + e) % count[e]]) for e in range(placement.experts)]
            for t in range(rows)
        ]
        return torch.tensor(made, dtype=torch.int32)

    def test_are_kept_true_to_the_maps(self) -> None:
        before, after = Placement.linear(2, 4, 2, 3), Placement.linear(2, 4, 2, 3)
        after = after.with_layers(np.array([1]), np.array([[[3, 0, 1], [2, 3, 0]]], dtype=np.int32))
        layers = [
            SimpleNamespace(expert_replica_routing_table=self.table(before, index, 1, 8))
            for index in range(2)
        ]
        told: list[str] = []
        maps = SimpleNamespace(stage_maps=lambda _: lambda: told.append("maps"))
        tables = RoutingTables(maps, layers, before, rank=1, width=8)
        addresses = [each.expert_replica_routing_table.data_ptr() for each in layers]
        derived = derive_maps(after, np.array([1]))
        prepare = Prepare(
            term=1,
            epoch=1,
            base_digest=before.digest,
            target_digest=after.digest,
            lane=0,
            rounds=0,
            layers=np.array([1], dtype=np.int32),
            slots=after.slots[1:],
            transfers=np.zeros((0, 9), dtype=np.int32),
            replica_count=derived.replica_count,
            physical=derived.physical,
            log2phy=derived.log2phy[1],
            expert_map=derived.expert_map[1],
        )
        tables.stage_maps(prepare)()
        for index, each in enumerate(layers):
            assert each.expert_replica_routing_table.equal(self.table(after, index, 1, 8))
        assert told == ["maps"]
        assert addresses == [each.expert_replica_routing_table.data_ptr() for each in layers]

    def test_another_rule_is_refused(self) -> None:
        before = Placement.linear(1, 4, 2, 3)
        wrong = SimpleNamespace(expert_replica_routing_table=self.table(before, 0, 0, 8))
        with pytest.raises(TransferError, match="not made by the known rule"):
            RoutingTables(SimpleNamespace(stage_maps=None), [wrong], before, rank=1, width=8)
