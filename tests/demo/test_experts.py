"""Experts in slots: the same bits for every rank and place, and a probe that notices otherwise."""

import numpy as np
import pytest
import torch
from torch import Tensor

from eplbd.demo.experts import Experts, probe, same_bits
from eplbd.demo.shape import Shape
from eplbd.errors import ConfigError
from eplbd.worker.torch_experts import ExpertTensors

pytestmark = pytest.mark.slow

SHAPE = Shape(layers=2, experts=8, ranks=2, slots_per_rank=5)
SLOTS = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]], dtype=np.int32)


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, SHAPE.hidden, generator=torch.Generator().manual_seed(seed))


def test_an_expert_is_the_same_wherever_it_is_held() -> None:
    here = Experts(SHAPE, SLOTS, seed=3)
    there = Experts(SHAPE, np.roll(SLOTS, 1, axis=1), seed=3)
    for layer in range(SHAPE.layers):
        for name, held in here.layers[layer].named().items():
            moved = there.layers[layer].named()[name]
            assert same_bits(held, moved.roll(-1, 0)), name
            assert not same_bits(held[0], held[1]), f"two experts share their {name}"
    assert not same_bits(here.layers[0].w13[2], here.layers[1].w13[2])
    other = Experts(SHAPE, SLOTS, seed=4)
    assert not same_bits(here.layers[0].w13, other.layers[0].w13)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 200])
def test_rows_pass_the_expert_of_their_slot(n: int) -> None:
    experts = Experts(SHAPE, SLOTS, seed=3)
    x = rows(n)
    slots = torch.from_numpy(np.random.default_rng(n).integers(0, 4, n))
    result, counts = experts.run(1, x, slots)
    assert counts.tolist() == np.bincount(slots.numpy(), minlength=5).tolist()
    held = experts.layers[1]
    for row, slot, found in zip(x, slots.tolist(), result, strict=True):
        gate, up = (held.w13[slot].double() @ row.double()).chunk(2)
        inner = gate * torch.sigmoid(gate) * up
        expected = held.w2[slot].double() @ inner * held.w2_scale[slot].double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_this_machine_computes_a_row_alike_in_every_place() -> None:
    probe(Experts(SHAPE, SLOTS, seed=3))
    probe(Experts(Shape(), np.zeros((6, 10), np.int32), seed=0))


def test_an_executor_accepts_the_tensors_as_an_expert_to_move() -> None:
    experts = Experts(SHAPE, SLOTS, seed=3)
    moving = ExpertTensors([layer.named() for layer in experts.layers])
    assert moving.names(0) == ("w13", "w2", "w2_scale")
    assert (moving.slots, moving.expert_bytes) == (SHAPE.slots_per_rank, SHAPE.expert_bytes)
    assert not moving.unaligned


class ByPosition(Experts):
    """A matrix product whose last bits depend on the row's place in the batch."""

    def run(self, layer: int, rows: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        result, counts = super().run(layer, rows, slots)
        return result * (1 + 2e-7 * torch.arange(len(rows)))[:, None], counts


class ByCompany(Experts):
    """A matrix product whose last bits depend on how many rows a slot has."""

    def run(self, layer: int, rows: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        result, counts = super().run(layer, rows, slots)
        return result * (1 + 2e-7 * (counts[slots] > 1))[:, None], counts


@pytest.mark.parametrize("machine", [ByPosition, ByCompany])
def test_a_machine_that_computes_by_place_is_refused(machine: type[Experts]) -> None:
    with pytest.raises(ConfigError, match="rows come out different"):
        probe(machine(SHAPE, SLOTS, seed=3))


def test_same_bits_is_stricter_than_equal() -> None:
    zero, minus, nan = (torch.tensor([v]) for v in (0.0, -0.0, float("nan")))
    assert not same_bits(zero, minus)
    assert same_bits(nan, nan.clone())
