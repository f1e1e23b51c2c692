"""The engine's sources, a daemon for them, and ranks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from tests.ascend.control import Case, Report, Setting
from tests.ascend.sources import fetched
from tests.chaos.lab import QUICK
from tests.chaos.served import Served

REPOSITORY = Path(__file__).resolve().parents[2]
RANKS_S = 110.0

Ranks = Callable[..., list[Report]]


@pytest.fixture(scope="session")
def source(request: pytest.FixtureRequest) -> Path:
    """vllm-ascend, unpacked; kept from run to run."""
    return fetched(request.config.cache.mkdir("vllm-ascend"))


@pytest.fixture
def ranks(source: Path, tmp_path: Path) -> Iterator[Ranks]:
    """Plays a case on ranks beside a daemon; their reports."""
    from torch._C._distributed_c10d import TCPStore

    with contextlib.ExitStack() as stack:

        def play(case: Case, count: int = 2, record: str | None = None) -> list[Report]:
            daemon = Served(tmp_path)
            daemon.configure(**QUICK)
            stack.callback(daemon.close)
            daemon.start()
            store = TCPStore(
                "127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False
            )
            settings = [
                Setting(str(source), rank, count, store.port, daemon.socket, case, record=record)
                for rank in range(count)
            ]
            started = [stack.enter_context(_started(setting, tmp_path)) for setting in settings]
            return [_report(popen, tmp_path, daemon) for popen in started]

        yield play


@contextlib.contextmanager
def _started(setting: Setting, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    log = (folder / f"rank{setting.rank}.log").open("wb")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.ascend.rank"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        ) as popen,
    ):
        assert popen.stdin is not None
        popen.stdin.write(msgspec.json.encode(setting) + b"\n")
        popen.stdin.close()
        try:
            yield popen
        finally:
            popen.kill()


def _report(popen: subprocess.Popen[bytes], folder: Path, daemon: Served) -> Report:
    assert popen.stdout is not None
    popen.wait(RANKS_S)
    told = popen.stdout.read()
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("rank*.log")))
    assert popen.returncode == 0, f"status {popen.returncode}\n{logs}\n{daemon.tail()}"
    return msgspec.json.decode(told, type=Report)
