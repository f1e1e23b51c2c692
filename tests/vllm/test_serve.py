"""`vllm serve` with two EP ranks, through everything that happens to a daemon and its clients.

One engine of each way for the whole file, as it takes a minute to start; each test leaves it
serving, and the last one stops it in the middle of an epoch. So the order of the tests is part of
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eplbd_vllm.demo.clients import LENGTH, answers
from eplbd_vllm.demo.engines import EP2, OF_WORKERS, mapped, segments, serving
from eplbd_vllm.demo.run import ALONE, BATCHED
from tests.runtime.process import write_config
from tests.vllm.engines import BIN
from tests.vllm.lab import RESTLESS, Lab

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1800)]

EPOCHS = 20


@dataclass(frozen=True)
class Way:
    """How to serve what. idle_s: how long nobody asks for anything before a burst."""

    options: tuple[str, ...]
    shape: str = "qwen3"
    idle_s: float = 60.0


EAGER = ("--enforce-eager",)
DP2 = ("--data-parallel-size", "2", *EP2[2:])
WAYS = [
    pytest.param(Way((*EP2, *EAGER), idle_s=1.0), id="tp2"),
    pytest.param(Way(EP2), id="tp2-compiled", marks=pytest.mark.nightly),
    pytest.param(Way((*EP2, *EAGER), "deepseek"), id="tp2-deepseek", marks=pytest.mark.nightly),
    pytest.param(Way((*DP2, *EAGER)), id="dp2", marks=pytest.mark.nightly),
]


def alone(folder: Path, endpoint: str, model: Path) -> list[list[int]]:
    """Tokens of an engine whose ranks share no experts; one prompt at a time."""
    with serving(BIN, folder, endpoint, model, *ALONE[model.name], *EAGER) as server:
        server.ready()
        return answers(server)


@pytest.fixture(scope="module", params=WAYS)
def lab(
    request: pytest.FixtureRequest,
    model_of: Callable[[str], Path],
    reference: Callable[[str], dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    way: Way = request.param
    folder = tmp_path_factory.mktemp("serve")
    write_config(folder, **RESTLESS)
    endpoint, model = f"ipc://{folder}/w.sock", model_of(way.shape)
    batched = BATCHED[way.shape]
    expected = reference(way.shape)["tokens"] if batched else alone(folder, endpoint, model)
    with serving(BIN, folder, endpoint, model, *way.options) as server:
        server.ready()
        lab = Lab(folder, server, expected, idle_s=way.idle_s, batched=batched)
        with lab.stack:
            yield lab


def test_it_serves_without_a_daemon_and_says_so_once(lab: Lab) -> None:
    lab.check()
    (line,) = lab.server.lines("there is no daemon at")
    assert "start `eplbd serve`" in line
    assert len(lab.server.lines("eplbd balances this engine")) == 1


def test_a_daemon_that_comes_later_is_found_and_leads_many_epochs(lab: Lab) -> None:
    daemon = lab.start_daemon()
    with lab.traffic():
        lab.settle(EPOCHS)
        lab.check_amid()
    lab.check()  # one request at a time: another data-parallel rank runs dummy batches beside it
    assert daemon.line("group gathered")["ranks"] == 2


def test_a_client_that_hangs_up_harms_nobody(lab: Lab) -> None:
    with lab.traffic():
        for seed in range(4):
            lab.server.hang_up([8 + seed] * LENGTH)
        lab.settle(lab.settled() + 2)
        lab.check_amid()
    lab.check()


def test_a_burst_after_an_idle_while(lab: Lab) -> None:
    time.sleep(lab.idle_s)
    with lab.traffic():
        lab.settle(lab.settled() + 2)
        lab.check_amid()
    lab.check()


def test_a_daemon_killed_amid_an_epoch_leaves_serving_as_it_is(lab: Lab) -> None:
    with lab.traffic():
        lab.kill_daemon()
        lab.check_amid()
        lab.start_daemon()
        lab.settle(3)
        lab.check_amid()
    lab.check()


def test_an_engine_stopped_amid_an_epoch_leaves_nothing(lab: Lab) -> None:
    with lab.traffic() as clients:
        lab.epoch()
        clients.leaving = True
        lab.server.stop()
    assert lab.server.popen.returncode == 0, lab.server.story()
    assert lab.server.processes() == []
    new = segments() - lab.server.before
    left = {name for name in new if OF_WORKERS not in name and not mapped(name)}
    assert left == set(), "beyond what vLLM's own workers leave, and what other engines use"
