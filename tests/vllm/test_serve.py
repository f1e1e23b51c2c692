"""`vllm serve` with two EP ranks, through everything that happens to a daemon and its clients.

One engine for the whole file, as it takes a minute to start; each test leaves it serving, and the
last one stops it in the middle of an epoch. So the order of the tests is part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eplbd_vllm.demo.clients import LENGTH
from eplbd_vllm.demo.engines import EP2, OF_WORKERS, mapped, segments, serving
from tests.runtime.process import write_config
from tests.vllm.engines import BIN
from tests.vllm.lab import RESTLESS, Lab

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def lab(
    model_of: Callable[[str], Path],
    reference: Callable[[str], dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("serve")
    write_config(folder, **RESTLESS)
    expected: list[list[int]] = reference("qwen3")["tokens"]
    options = (*EP2, "--enforce-eager")
    with serving(BIN, folder, f"ipc://{folder}/w.sock", model_of("qwen3"), *options) as server:
        server.ready()
        lab = Lab(folder, server, expected)
        with lab.stack:
            yield lab


def test_it_serves_without_a_daemon_and_says_so_once(lab: Lab) -> None:
    lab.check()
    (line,) = lab.server.lines("there is no daemon at")
    assert "start `eplbd serve`" in line
    assert len(lab.server.lines("eplbd balances this engine")) == 1


def test_a_daemon_that_comes_later_is_found(lab: Lab) -> None:
    lab.start_daemon()
    with lab.traffic():
        lab.settle(5)
        lab.check()
    lab.check()


def test_a_client_that_hangs_up_harms_nobody(lab: Lab) -> None:
    with lab.traffic():
        for seed in range(4):
            lab.server.hang_up([8 + seed] * LENGTH)
        lab.settle(lab.settled() + 2)
        lab.check()


def test_a_daemon_killed_amid_epochs_leaves_serving_as_it_is(lab: Lab) -> None:
    with lab.traffic():
        lab.settle(lab.settled() + 1)
        lab.kill_daemon()
        lab.check()
        lab.start_daemon()
        lab.settle(3)
        lab.check()


def test_an_engine_stopped_amid_epochs_leaves_nothing(lab: Lab) -> None:
    with lab.traffic() as clients:
        lab.settle(lab.settled() + 1)
        clients.leaving = True
        lab.server.stop()
    assert lab.server.processes() == []
    new = segments() - lab.server.before
    left = {name for name in new if OF_WORKERS not in name and not mapped(name)}
    assert left == set(), "beyond what vLLM's own workers leave, and what other engines use"
