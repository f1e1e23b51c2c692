"""A real engine that eplbd cannot join: one line says why and what to do, and the engine serves.

That no daemon is there is in `test_serve.py`; that the plugin is switched off, in every reference.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from tests.runtime.conftest import wait_until
from tests.runtime.process import daemon, write_config
from tests.vllm.engines import offline
from tests.vllm.lab import newer_daemon

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
]

NOBODY = 65_534
NOT_ALMIGHTY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
"""Runs a command as root whom modes of files concern, as they do everybody else."""

Models = Callable[[str], Path]
Reference = Callable[[str], dict[str, Any]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: there are sockets in it."""
    with tempfile.TemporaryDirectory(prefix="refused-") as name:
        yield Path(name)


def said(log: str) -> list[str]:
    """What the engine's log says of eplbd, from the name on."""
    return re.findall("eplbd: .*|eplbd refuses .*", log)


def test_a_dense_model(model_of: Models, folder: Path) -> None:
    report = offline(folder, f"ipc://{folder}/w.sock", model=str(model_of("dense")), again=False)
    (line,) = said(report["log"])
    assert "has no layers of experts: nothing to balance, remove eplbd-vllm" in line
    assert len(report["tokens"]) > 0


def test_without_expert_parallelism(model_of: Models, reference: Reference, folder: Path) -> None:
    report = offline(
        folder,
        f"ipc://{folder}/w.sock",
        model=str(model_of("qwen3")),
        ranks=2,
        experts=False,
        again=False,
    )
    (line,) = said(report["log"])
    assert "start vLLM with --enable-expert-parallel --enable-eplb" in line
    assert report["tokens"] == reference("qwen3")["tokens"]


def test_a_daemon_of_another_wire_version(
    model_of: Models, reference: Reference, folder: Path
) -> None:
    with newer_daemon(write_config(folder), folder / "w.sock"):
        report = offline(
            folder,
            f"ipc://{folder}/w.sock",
            model=str(model_of("qwen3")),
            ranks=2,
            redundant=2,
            again=False,
        )
    assert len(said(report["log"])) == 1, report["log"]
    (line,) = said(report["log"])
    assert re.search("wire versions.*: upgrade .*worker", line)
    assert report["tokens"] == reference("qwen3")["tokens"]


@pytest.mark.skipif(
    os.getuid() != 0 or which("setpriv") is None, reason="takes root, and setpriv to be less"
)
def test_a_socket_that_is_closed_to_the_engine(
    model_of: Models, reference: Reference, folder: Path
) -> None:
    with daemon(write_config(folder)) as process:
        wait_until(lambda: "serving" in process.events(), process.story)
        os.chown(folder / "w.sock", NOBODY, NOBODY)
        report = offline(
            folder,
            f"ipc://{folder}/w.sock",
            prefix=NOT_ALMIGHTY,
            model=str(model_of("qwen3")),
            ranks=2,
            redundant=2,
            again=False,
        )
    (line,) = said(report["log"])
    assert re.search("is closed to user root: make it a member of .* daemon.socket_mode", line)
    assert report["tokens"] == reference("qwen3")["tokens"]
