"""The checksum's promise: certain kinds of damage are always found, wherever the tensor starts."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from eplbd.worker.torch_checksum import WORDS, Checksums  # noqa: E402

pytestmark = pytest.mark.slow

SIZES = (5, 8, 4000, 8192, 40_007, 8192 * 3 + 8)
CHECKSUMS = Checksums(SIZES, torch.device("cpu"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch shares out even sums that take no time, and then waits for each of its threads' turn.

    On a busy machine that is a hundred times the sum.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def content(seed: int) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    # Few values, so that damaged and whole bytes are often equal and sums are often close.
    return [torch.from_numpy(rng.choice(np.array([0, 1, 128, 255], np.uint8), n)) for n in SIZES]


def expect_only(parts: list[Tensor], before: Tensor, damaged: int) -> None:
    differs = (CHECKSUMS.compute(parts) != before).any(1).tolist()
    assert differs == [index == damaged for index in range(len(SIZES))]


@pytest.mark.usefixtures("one_thread")
@given(st.integers(0, 99), st.integers(0, len(SIZES) - 1), st.data())
def test_any_changed_byte_is_found(seed: int, index: int, data: st.DataObject) -> None:
    parts = content(seed)
    before = CHECKSUMS.compute(parts)
    at = data.draw(st.integers(0, SIZES[index] - 1))
    parts[index][at] ^= data.draw(st.integers(1, 255))
    expect_only(parts, before, index)


@pytest.mark.usefixtures("one_thread")
@given(st.integers(0, 99), st.integers(1, len(SIZES) - 1), st.sampled_from([1, 2, 4, 8]), st.data())
def test_any_exchange_of_unequal_units_is_found(
    seed: int, index: int, unit: int, data: st.DataObject
) -> None:
    parts = content(seed)
    before = CHECKSUMS.compute(parts)
    units = parts[index][: SIZES[index] // unit * unit].view(-1, unit)
    one, two = (data.draw(st.integers(0, len(units) - 1)) for _ in range(2))
    if not torch.equal(units[one], units[two]):
        units[[one, two]] = units[[two, one]]
        expect_only(parts, before, index)


def test_every_exchange_of_two_words_in_a_row_and_in_a_column_is_found() -> None:
    checksums = Checksums((8192 * 2,), torch.device("cpu"))
    words = torch.zeros(2048, dtype=torch.int64)
    # Differences of 2**63, 2**32 and 1: each is invisible to some linear sum modulo 2**64.
    for value in (-(2**63), 2**32, 1):
        for one, two in ((0, 2), (0, 1024), (512, 1536), (0, 1025), (3, 2047)):
            words.zero_()
            words[one] = value
            before = checksums.compute([words.view(torch.uint8)])
            words[[one, two]] = words[[two, one]]
            assert not torch.equal(checksums.compute([words.view(torch.uint8)]), before)


@pytest.mark.parametrize("offset", range(1, 8))
def test_where_a_tensor_starts_makes_no_difference(offset: int) -> None:
    sizes = (8192 * 300 + 13,)
    checksums = Checksums(sizes, torch.device("cpu"))
    whole = torch.randint(0, 256, sizes, dtype=torch.uint8, generator=torch.manual_seed(1))
    shifted = torch.cat([torch.zeros(offset, dtype=torch.uint8), whole])[offset:]
    assert shifted.data_ptr() % 8
    found = checksums.compute([shifted])
    assert found.shape == (1, WORDS)
    assert torch.equal(found, checksums.compute([whole]))


def test_temporaries_are_small() -> None:
    expert = (2 * 7168 * 2048, 7168 * 2048)
    checksums = Checksums(expert, torch.device("cpu"), unaligned=False)
    assert checksums.nbytes < sum(expert) / 200
