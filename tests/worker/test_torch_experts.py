"""The seam to an engine's weights: what is described, and what is refused."""

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from eplbd.errors import TransferError  # noqa: E402
from eplbd.worker.torch_experts import ExpertTensors, SlotTensors, describe  # noqa: E402

pytestmark = pytest.mark.slow

Layers = list[dict[str, SlotTensors]]


def fine() -> Layers:
    return [
        {
            "w": torch.zeros(3, 4, 5, dtype=torch.bfloat16),
            "scale": [torch.zeros(2, dtype=torch.int64) for _ in range(3)],
        },
        {"w": torch.zeros(3, 7, dtype=torch.int8), "zero_point": torch.zeros(3)},
    ]


def test_every_tensor_is_described() -> None:
    experts = ExpertTensors(fine())
    found = [(s.layer, s.name, s.dtype, s.shape, s.bytes, s.stacked) for s in experts.describe()]
    assert found == [
        (0, "w", "bfloat16", (4, 5), 40, True),
        (0, "scale", "int64", (2,), 16, False),
        (1, "w", "int8", (7,), 7, True),
        (1, "zero_point", "float32", (), 4, True),
    ]
    assert all(spec.contiguous and not spec.aliased for spec in experts.describe())
    assert (experts.layers, experts.slots, experts.expert_bytes) == (2, 3, 56)


def test_parts_are_the_live_bytes() -> None:
    layers = fine()
    experts = ExpertTensors(layers)
    experts.parts(1, 2)[0].fill_(3)
    assert layers[1]["w"][2].tolist() == [3] * 7
    assert layers[1]["w"][1].tolist() == [0] * 7


class Mirrored:
    """A private layout: memory holds the contents back to front."""

    def read(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(-1).view(torch.uint8).flip(0)

    def write(self, tensor: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return tensor.reshape(-1).view(torch.uint8), image.flip(0)


def test_a_private_layout_is_read_and_written_as_contents() -> None:
    weight = torch.arange(8, dtype=torch.uint8).view(2, 4)
    experts = ExpertTensors([{"w": weight}], Mirrored())
    (image,) = experts.parts(0, 0)
    assert image.tolist() == [3, 2, 1, 0]
    for target, source in experts.pairs(0, 1, [image]):
        target.copy_(source)
    assert weight.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_replaced_tensor_is_followed_and_a_resized_one_refused() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 8))
    experts = ExpertTensors([{"w": weight}])
    weight.data = torch.ones(2, 8)
    assert experts.parts(0, 1)[0].view(torch.float32).tolist() == [1.0] * 8
    weight.data = torch.ones(2, 4)
    with pytest.raises(TransferError, match="layer 0, slot 1: a tensor has another size"):
        experts.parts(0, 1)


def test_the_digest_is_of_the_layout_alone() -> None:
    one, two = ExpertTensors(fine()), ExpertTensors(fine())
    two.parts(0, 0)[0].fill_(9)
    assert one.layout_digest == two.layout_digest
    assert len(one.layout_digest) == 16
    for change in (
        {"w": torch.zeros(3, 5, 4, dtype=torch.bfloat16)},
        {"w": torch.zeros(3, 4, 5, dtype=torch.float16)},
        {"v": torch.zeros(1)},
    ):
        layers = fine()
        layers[0] = {**layers[0], **change} if "w" in change else dict(reversed(layers[0].items()))
        assert ExpertTensors(layers).layout_digest != one.layout_digest


def shared() -> Layers:
    memory = torch.zeros(6, 4)
    return [{"w": memory[:3], "v": memory[2:5]}]


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ([], "a layer without tensors"),
        ([{"w": torch.zeros(2, 2)}, {}], "a layer without tensors"),
        ([{"w": torch.zeros(3, 0)}], "layer 0, 'w' has no bytes"),
        ([{"w": torch.zeros(0, 4)}], "layer 0, 'w' has 0 slots"),
        ([{"w": torch.zeros(3, 4), "v": torch.zeros(2, 4)}], "'v' has 2 slots"),
        ([{"w": torch.zeros(3, 4, 5).transpose(1, 2)}], "'w' has strided slots"),
        ([{"w": torch.zeros(4, 3).t()}], "'w' has strided slots"),
        (shared(), "'v' shares memory with layer 0, 'w', slot 2"),
        ([{"w": [torch.zeros(4)] * 3}], "'w' shares memory with layer 0, 'w', slot"),
        ([{"w": torch.zeros(1, 4).expand(3, 4)}], "'w' shares memory"),
        ([{"w": [torch.zeros(4), torch.zeros(5)]}], "slot 1"),
        ([{"w": [torch.zeros(4), torch.zeros(4).half()]}], "slot 1"),
        ([{"w": torch.zeros(2, 4), "v": torch.zeros(2, 4, device="meta")}], "on meta"),
    ],
)
def test_what_cannot_be_moved_is_refused_naming_the_tensor(layers: Layers, complaint: str) -> None:
    with pytest.raises(TransferError, match=complaint):
        ExpertTensors(layers)


def test_what_is_refused_can_still_be_described() -> None:
    strided, first, second = describe([{"w": torch.zeros(3, 4, 5).transpose(1, 2)}, *shared()])
    assert not strided.contiguous
    assert not first.aliased
    assert second.aliased == "layer 1, 'w', slot 2"
