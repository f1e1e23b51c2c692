"""What takes minutes: more ranks, data-parallel ranks with idle neighbours, compiled models."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eplbd_vllm.demo.engines import serving
from tests.runtime.process import daemon, write_config
from tests.vllm.engines import BIN, offline
from tests.vllm.lab import RESTLESS, Lab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.nightly,
    pytest.mark.timeout(3600),
]

IDLE_S = 60.0
DP2 = (
    *("--data-parallel-size", "2", "--enable-expert-parallel", "--enforce-eager"),
    *("--enable-eplb", "--eplb-config.num_redundant_experts", "2"),
)

Models = Callable[[str], Path]
Reference = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize(
    ("ranks", "redundant", "compiled"), [(4, 4, False), (2, 2, True)], ids=["tp4", "compiled"]
)
def test_offline(
    ranks: int,
    redundant: int,
    compiled: bool,
    model_of: Models,
    reference: Reference,
    tmp_path: Path,
) -> None:
    expected = reference("qwen3")
    with daemon(write_config(tmp_path, **RESTLESS)) as process:
        report = offline(
            tmp_path,
            f"ipc://{tmp_path}/w.sock",
            model=str(model_of("qwen3")),
            ranks=ranks,
            redundant=redundant,
            compiled=compiled,
            epochs=10,
            broken=True,
        )
    story = f"{report['log'][-3000:]}\n{process.story()[-3000:]}"
    assert report["commits"] >= 10, story
    assert report["tokens"] == expected["tokens"]
    assert report["differing"] == 0, f"{report['differing']} of {report['rounds']} rounds"
    assert report["broken_differs"] is True


def test_data_parallel_ranks_that_are_idle_keep_the_clock(
    model_of: Models, reference: Reference, tmp_path: Path
) -> None:
    write_config(tmp_path, **RESTLESS)
    expected = reference("qwen3")["tokens"]
    with serving(BIN, tmp_path, f"ipc://{tmp_path}/w.sock", model_of("qwen3"), *DP2) as server:
        server.ready()
        lab = Lab(tmp_path, server, expected)
        with lab.stack:
            process = lab.start_daemon()
            with lab.traffic():
                lab.settle(5)
                lab.check()
            lab.check()  # one request at a time: the other rank runs dummy batches
            time.sleep(IDLE_S)
            lab.check()
            with lab.traffic():
                lab.settle(lab.settled() + 3)
                lab.check()
            gathered = process.line("group gathered")
            assert gathered["ranks"] == 2
            assert lab.frozen() == []
        server.stop()
