"""What has to be true of a rank of vllm-ascend, looked at from outside the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from eplbd.core.placement import Placement
from tests.ascend import stubs
from tests.ascend.engine import EXPERTS, LAYERS, Engine, load

NAMES = (
    "w13_weight", "w2_weight", "w13_weight_list", "w2_weight_list", "w13_weight_scale_fp32_list",
    "w2_weight_scale_list", "w13_weight_scale_list", "fused_w1_scale_list", "fused_w2_scale_list",
    "w13_scale_bias_list", "w2_scale_bias_list",
)  # fmt: skip
"""Whatever of these a layer has."""


class Audit:
    """Of one engine; made before anything moves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.wrong: list[str] = []
        self._first = dict(self._pointers())

    def contents(self, placement: Placement) -> int:
        """Compare every tensor of every slot with its expert; bytes compared."""
        checked = 0
        for layer in range(LAYERS):
            held = placement.slots[layer, self._engine.rank].tolist()
            for name in self._names(layer):
                ours = getattr(self._engine.layers[layer], name)
                truth = getattr(self._engine.reference[layer], name)
                for slot, expert in enumerate(held):
                    found = _bytes(ours[slot])
                    checked += len(found)
                    if found != _bytes(truth[expert]):
                        what = f"layer {layer} slot {slot} {name}: not expert {expert}"
                        self.wrong.append(what)
        return checked

    def maps(self, placement: Placement) -> Iterator[str]:
        """Every map, against what the engine itself would make of the same placement."""
        generate = load("eplb.core.eplb_utils").generate_log2phy_map
        case, rank = self._engine.case, self._engine.rank
        for index, layer in enumerate(self._engine.layers):
            held = layer.global_expert_map
            for other, slots in enumerate(placement.slots[index].tolist()):
                if [int(held[other, expert]) for expert in slots] != [*range(len(slots))]:
                    yield f"layer {index}: the expert map of rank {other} is not its slots"
                if int((held[other] >= 0).sum()) != len(slots):
                    yield f"layer {index}: the expert map of rank {other} holds more than its slots"
            expected = generate(list(held), rank, case.tp_size)
            if not torch.equal(layer.log2phy, expected):
                yield f"layer {index}: log2phy is {layer.log2phy.tolist()}, not {expected.tolist()}"

    def addresses(self) -> Iterator[str]:
        """Everything that a captured graph reads, where it was."""
        for what, pointer in self._pointers():
            if self._first[what] != pointer:
                yield f"{what} has moved in memory"

    def retired(self) -> bool:
        """Nothing of the engine's own balancer is left."""
        runner = self._engine.worker.model_runner
        kind = load("eplb.eplb_updator").EplbUpdator
        alive = [child for child in self._engine.children if child.is_alive()]
        return not alive and not isinstance(runner.eplb_updator, kind) and runner.is_eplb_warmuped

    def recorded(self, leave: Callable[[], None]) -> str:
        """Digest of what the engine's reader finds in the record once the guest has left."""
        path = self._engine.setting.record
        if path is None or self._engine.rank:
            return ""
        leave()
        read = load("eplb.core.eplb_utils").expert_file_to_tensor
        slots = torch.stack([read(path, layer)[0] for layer in range(LAYERS)])
        return Placement(slots.numpy(), EXPERTS).digest

    def _names(self, layer: int) -> list[str]:
        return [name for name in NAMES if hasattr(self._engine.reference[layer], name)]

    def _pointers(self) -> Iterator[tuple[str, int]]:
        for index, layer in enumerate(self._engine.layers):
            yield f"layer {index} log2phy", layer.log2phy.data_ptr()
            for name in self._names(index):
                for slot, tensor in enumerate(getattr(layer, name)):
                    yield f"layer {index} {name} {slot}", tensor.data_ptr()


def _bytes(tensor: Tensor) -> bytes:
    """The contents, whatever the format."""
    plain = stubs.npu_format_cast(tensor.detach(), 2).as_subclass(Tensor)
    contiguous = plain.contiguous().reshape(-1)
    return contiguous.view(torch.uint8).numpy().tobytes()
