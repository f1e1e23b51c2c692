"""What moves with an expert: found whole, or refused by the name of what would stay behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import Module, Parameter  # noqa: E402

from eplbd.errors import TransferError  # noqa: E402
from eplbd.worker.torch_experts import ExpertTensors  # noqa: E402
from eplbd_vllm.torch_weights import expert_tensors, table  # noqa: E402
from eplbd_vllm.upstream import MoeLayer  # noqa: E402

pytestmark = pytest.mark.slow

SLOTS = 4


def parameter(*size: int) -> Parameter:
    return Parameter(torch.zeros(SLOTS, *size), requires_grad=False)


class Experts(Module):
    """As `RoutedExperts`: parameters, and views of them."""

    local_num_experts = SLOTS

    def __init__(self) -> None:
        super().__init__()
        self.w13_weight = parameter(8, 4)
        self.w2_weight = parameter(4, 4)
        self.w13_weight_scale = parameter(8)
        self.quant_method: object = SimpleNamespace()

    def get_expert_weights(self) -> list[Tensor]:
        return [weight.view(SLOTS, -1) for weight in self.parameters()]


class Layer:
    """As `MoERunner`."""

    layer_name = "layers.0"

    def __init__(self) -> None:
        self.routed_experts = Experts()


def found(*layers: Layer) -> ExpertTensors:
    return expert_tensors([cast("MoeLayer", each) for each in layers])


def test_weights_and_scales_are_found_by_name() -> None:
    experts = found(Layer(), Layer())
    assert experts.names(0) == ("w13_weight", "w2_weight", "w13_weight_scale")
    assert experts.slots == SLOTS
    said = table(experts.describe())
    assert said.startswith("2 layers (0-1), per slot w13_weight float32[32] 128 B, w2_weight ")


def test_layers_that_differ_are_told_apart() -> None:
    small = Layer()
    small.routed_experts.w2_weight = parameter(2, 4)
    said = table(found(Layer(), Layer(), small, Layer()).describe()).split("; ")
    assert [each.partition(", per slot")[0] for each in said] == [
        "3 layers (0-1, 3)",
        "1 layers (2)",
    ]
    assert "w2_weight float32[8] 32 B" in said[1]


def derived(tensor: Tensor) -> object:
    """An object of a kernel's, with a tensor of its own."""
    kernel: object = type("Kernel", (), {"__module__": "vllm.kernels"})()
    vars(kernel)["alphas"] = tensor
    return kernel


def test_a_tensor_that_was_derived_is_named() -> None:
    strange = Layer()
    strange.routed_experts.quant_method = derived(torch.zeros(SLOTS, 2))
    with pytest.raises(TransferError, match=r"quant_method.alphas float32\[4, 2\]"):
        found(strange)


@pytest.mark.parametrize("harmless", ["view", "shared", "other"])
def test_what_moves_anyway_or_is_of_no_expert_is_not_missed(harmless: str) -> None:
    fine = Layer()
    tensors = {
        "view": fine.routed_experts.w2_weight.data.view(SLOTS, 16),
        "shared": torch.ones(1).expand(SLOTS),
        "other": torch.zeros(SLOTS + 1, 2),
    }
    fine.routed_experts.quant_method = derived(tensors[harmless])
    assert found(fine).slots == SLOTS


def test_a_buffer_of_the_layer_is_looked_at_too() -> None:
    strange = Layer()
    strange.routed_experts.register_buffer("zero_points", torch.zeros(SLOTS, 3))
    with pytest.raises(TransferError, match="zero_points"):
        found(strange)
