"""The name that the ranks of one life of a group agree on, through a real store."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")

from torch._C._distributed_c10d import Store, TCPStore  # noqa: E402

from eplbd.worker import torch_attach  # noqa: E402
from eplbd.worker.torch_attach import Membership  # noqa: E402

pytestmark = pytest.mark.slow

PATIENCE_S = 20.0
AHEAD_S = 0.3
"""By which rank 1 asks before rank 0 has said anything; an answer takes less than a millisecond."""


@pytest.fixture
def stores() -> list[Store]:
    """Both ranks' clients of one store, which rank 0 hosts."""
    patience = timedelta(seconds=PATIENCE_S)
    host = TCPStore("127.0.0.1", 0, None, True, patience, wait_for_workers=False)
    return [host, TCPStore("127.0.0.1", host.port, None, False, patience)]


def name_of(stores: list[Store], rank: int) -> str:
    """What a rank takes the group's life to be called."""
    return torch_attach._incarnation(Membership("g", rank, 2, stores[rank]))  # noqa: SLF001


def test_a_second_attachment_has_a_later_name_on_every_rank(stores: list[Store]) -> None:
    """Rank 1 is quicker each time: the name before must not be there for it to read."""
    lives: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            early: Future[str] = pool.submit(name_of, stores, 1)
            wait([early], timeout=AHEAD_S)
            assert not early.done(), "it read another life's name"
            name = name_of(stores, 0)
            assert early.result(PATIENCE_S) == name
            lives.append(name)
    assert lives == sorted(set(lives))


def test_a_rank_that_gave_up_waiting_may_ask_again(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch_attach, "RENDEZVOUS_S", 0.2)
        with pytest.raises(RuntimeError):
            name_of(stores, 1)
    assert name_of(stores, 0) == name_of(stores, 1)
