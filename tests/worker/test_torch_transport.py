"""How an expert becomes messages, and that a sender in trouble still sends, under a broken seal."""

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from eplbd.worker.executor import Transfer  # noqa: E402
from eplbd.worker.torch_staging import Layout  # noqa: E402
from eplbd.worker.torch_transport import Cargo, Direct, HostStaged  # noqa: E402

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
LAYOUT = Layout((7, 300))
MOVE = Transfer(0, 2, 5, 0, 1, -1, 3, 1, 0)


def cargo(buffer: Tensor) -> Cargo:
    return Cargo(MOVE, LAYOUT, LAYOUT.header(buffer), LAYOUT.parts(buffer))


def filled(value: int) -> Tensor:
    buffer: Tensor = torch.full((LAYOUT.nbytes,), value, dtype=torch.uint8)
    return buffer


def fail(error: RuntimeError) -> None:
    raise AssertionError(error)


def test_tensors_start_where_every_dtype_may() -> None:
    assert LAYOUT.offsets == [256, 512]
    assert LAYOUT.nbytes == 1024
    assert LAYOUT.header_bytes == 8 * (2 + 2 * 5)


def test_directly_each_tensor_is_a_message_and_nothing_is_copied() -> None:
    source = cargo(filled(1))
    legs = Direct(CPU).load(source, 0, fail)
    places = [source.header.data_ptr(), *(part.data_ptr() for part in source.parts)]
    assert [leg.tensor.data_ptr() for leg in legs] == places
    assert [(leg.peer, leg.sends) for leg in legs] == [(3, True)] * 3
    assert [(leg.peer, leg.sends) for leg in Direct(CPU).expect(source, 0)] == [(0, False)] * 3


def test_both_ends_give_a_message_the_same_tag_and_no_two_the_same() -> None:
    source = cargo(filled(1))
    sent = [leg.tag for leg in Direct(CPU).load(source, 0, fail)]
    assert sent == [leg.tag for leg in Direct(CPU).expect(source, 0)]
    other = Cargo(MOVE._replace(expert=6), LAYOUT, source.header, source.parts)
    tags = [*sent, *(leg.tag for leg in Direct(CPU).load(other, 0, fail))]
    assert len(set(tags)) == 6
    assert all(0 <= tag < 2**31 for tag in tags)


def test_through_the_host_an_expert_is_one_message() -> None:
    out, back = HostStaged(CPU, 2048), HostStaged(CPU, 2048)
    (leg,) = out.load(cargo(filled(9)), 0, fail)
    assert leg.tensor.numel() == LAYOUT.nbytes
    target = cargo(filled(0))
    (arrival,) = back.expect(target, 0)
    arrival.tensor.copy_(leg.tensor)
    back.unload(target, 0)
    assert all(bool((part == 9).all()) for part in (target.header, *target.parts))
    assert out.nbytes == back.nbytes == 2048


def test_a_failed_copy_to_the_host_is_sent_under_a_broken_seal() -> None:
    transport, failures = HostStaged(CPU, 2048), list[RuntimeError]()
    transport.load(cargo(filled(9)), 0, fail)
    good = cargo(filled(9))
    bad = Cargo(MOVE, LAYOUT, good.header, [good.parts[0], good.parts[1][:-1]])
    (leg,) = transport.load(bad, 0, failures.append)
    assert len(failures) == 1
    assert leg.tensor.numel() == LAYOUT.nbytes, "the peer waits for all of it"
    assert not LAYOUT.header(leg.tensor).any()
