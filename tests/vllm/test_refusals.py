"""A real engine that eplbd cannot join: one line says why and what to do, and the engine serves.

That no daemon is there is in `test_serve.py`; that the plugin is switched off, in every reference.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import wait_until
from tests.runtime.process import daemon, write_config
from tests.vllm.engines import offline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
]

NOBODY = 65_534
NEWER = """
import eplbd.core.messages as messages
messages.WIRE_VERSION = messages.WIRE_VERSION_MIN = messages.WIRE_VERSION + 1
from eplbd.cli import main
main()
"""

Models = Callable[[str], Path]
Reference = Callable[[str], dict[str, Any]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody may look into, with a short name: there are sockets in it."""
    with tempfile.TemporaryDirectory(prefix="refused-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def newer_daemon(config: Path) -> Iterator[None]:
    """A daemon of the next wire version."""
    command = [sys.executable, "-c", NEWER, "serve", "--config", str(config)]
    with subprocess.Popen(command) as popen:
        try:
            wait_until((config.parent / "w.sock").exists, "the daemon serves")
            yield
        finally:
            popen.kill()


def said(log: str) -> list[str]:
    """What the engine's log says of eplbd, from the name on; one rank's prefix is left out."""
    lines = [line for line in log.splitlines() if "eplbd: " in line or "eplbd refuses" in line]
    return [line[line.index("eplbd", line.index("]")) :] for line in lines]


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
    with newer_daemon(write_config(folder)):
        report = offline(
            folder,
            f"ipc://{folder}/w.sock",
            model=str(model_of("qwen3")),
            ranks=2,
            redundant=2,
            again=False,
        )
    (line,) = set(said(report["log"]))  # the same from each rank
    assert line.endswith("upgrade eplbd in the worker's environment"), line
    assert report["tokens"] == reference("qwen3")["tokens"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start an engine as somebody else")
def test_a_socket_that_is_closed_to_the_engines_user(
    model_of: Models, reference: Reference, folder: Path
) -> None:
    model = shutil.copytree(model_of("qwen3"), folder / "qwen3")
    own = folder / "engine"
    own.mkdir()
    os.chown(own, NOBODY, -1)
    with daemon(write_config(folder)) as process:
        wait_until(lambda: "serving" in process.events(), process.story)
        report = offline(
            own,
            f"ipc://{folder}/w.sock",
            user=NOBODY,
            model=str(model),
            ranks=2,
            redundant=2,
            again=False,
        )
    (line,) = said(report["log"])
    assert "is closed to user nobody: make it a member of " in line, line
    assert report["tokens"] == reference("qwen3")["tokens"]
