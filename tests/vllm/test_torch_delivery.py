"""Maps brought to a device: there when the call returns, and never under a reader's eyes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from eplbd_vllm.torch_delivery import Delivery  # noqa: E402
from tests.selection.devices import device_named  # noqa: E402

pytestmark = pytest.mark.slow

SIZE = 1 << 16
READERS = 64
"""Of one delivery; on a device they are still at it when the next one comes."""


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_next_delivery_waits_for_the_readers_of_the_last(name: str) -> None:
    device = device_named(name)
    delivery = Delivery(device, "maps")
    whole, part = (torch.zeros(size, dtype=torch.int64, device=device) for size in (SIZE, 3))
    for number in (1, 2, 3):
        pairs = [(whole, np.full(SIZE, number)), (part, np.arange(3) * number)]
        delivery.bring(pairs)
        for buffer, array in pairs:
            assert np.array_equal(buffer.cpu().numpy(), array), "not there yet"
        seen = [whole + 0 for _ in range(READERS)]
        delivery.read()
        delivery.bring([(whole, np.zeros(SIZE, dtype=np.int64))])
        assert all(bool((each == number).all()) for each in seen), "overtaken by the next"
