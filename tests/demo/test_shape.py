"""The model's dimensions: what is refused, and what a recorded trace becomes."""

import pytest

from eplbd.demo.shape import Shape
from eplbd.errors import ConfigError


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"topk": 33}, "topk is 33"),
        ({"slots_per_rank": 7}, "cannot hold 32 experts"),
        ({"slots_per_rank": 33}, "no rank needs an expert twice"),
        ({"hidden": 48}, "hidden is 48, expected a multiple of 32"),
        ({"ffn": 33}, "ffn is 33"),
    ],
)
def test_sizes_that_cannot_work_are_refused(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Shape(**sizes)


def test_the_default_has_the_promised_size() -> None:
    shape = Shape()
    assert shape.layers >= 6
    assert (shape.experts, shape.topk, shape.ranks) == (32, 4, 4)
    assert shape.slots - shape.experts == 8
    assert shape.topology.slots == shape.slots


@pytest.mark.parametrize(
    ("layers", "experts", "topk"), [(58, 256, 8), (32, 8, 2), (24, 32, 4), (6, 128, 1)]
)
def test_a_trace_fits_into_memory_with_redundant_slots(
    layers: int, experts: int, topk: int
) -> None:
    shape = Shape.for_trace(layers=layers, experts=experts, topk=topk, ranks=4)
    assert (shape.layers, shape.experts, shape.topk) == (layers, experts, topk)
    assert shape.slots > experts
    assert 2 * layers * shape.slots * shape.expert_bytes < 1 << 30


def test_a_trace_that_cannot_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="at the narrowest"):
        Shape.for_trace(layers=200, experts=512, topk=8, ranks=4)
