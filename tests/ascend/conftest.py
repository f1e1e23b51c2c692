"""The engine's sources, a daemon for them, and ranks."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from tests.ascend.control import Case, Report, Setting
from tests.ascend.sources import fetched
from tests.chaos.lab import QUICK
from tests.chaos.served import Served

REPOSITORY = Path(__file__).resolve().parents[2]
REPORT_S = 110.0
"""For a case; the first one also imports the engine's sources, for five seconds of a core."""

RANKS = 2


class Ranks:
    """Processes of two ranks beside a daemon; they play one case after the other."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._numbers = itertools.count()
        self._stack = contextlib.ExitStack()
        self._started: list[subprocess.Popen[bytes]] = []

    def play(self, case: Case, record: str | None = None) -> list[Report]:
        """Play it; the ranks' reports."""
        if not self._started:
            self._start()
        for rank, popen in enumerate(self._started):
            setting = Setting(
                number=next(self._numbers) // RANKS,
                source=str(self._source),
                rank=rank,
                ranks=RANKS,
                port=self._store.port,
                socket=self._daemon.socket,
                case=case,
                record=record,
            )
            assert popen.stdin is not None
            popen.stdin.write(msgspec.json.encode(setting) + b"\n")
            popen.stdin.flush()
        lines = [self._line(popen) for popen in self._started]
        if not all(lines):
            story = self.story()
            self.close()
            raise AssertionError(story)
        return [msgspec.json.decode(line, type=Report) for line in lines]

    def close(self) -> None:
        """End every process."""
        for popen in self._started:
            popen.kill()
        self._started = []
        self._stack.close()

    def _start(self) -> None:
        from torch._C._distributed_c10d import TCPStore

        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        self._logs = [folder / f"rank{rank}.log" for rank in range(RANKS)]
        self._numbers = itertools.count()
        self._daemon = Served(folder)
        self._daemon.configure(**QUICK)
        self._stack.callback(self._daemon.close)
        self._daemon.start()
        patience = timedelta(seconds=60)
        self._store = TCPStore("127.0.0.1", 0, None, True, patience, wait_for_workers=False)
        for path in self._logs:
            log = self._stack.enter_context(path.open("wb"))
            popen = subprocess.Popen(
                [sys.executable, "-m", "tests.ascend.rank"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            )
            self._started.append(self._stack.enter_context(popen))

    def _line(self, popen: subprocess.Popen[bytes]) -> bytes:
        """What a rank tells; nothing where it died or does not answer."""
        assert popen.stdout is not None
        ready, _, _ = select.select([popen.stdout], [], [], REPORT_S)
        return popen.stdout.readline() if ready else b""

    def story(self) -> str:
        """For a test that fails."""
        logs = "\n".join(path.read_text(errors="replace")[-4000:] for path in self._logs)
        return f"{logs}\n{self._daemon.tail()}"


@pytest.fixture(scope="session")
def source(request: pytest.FixtureRequest) -> Path:
    """vllm-ascend, unpacked; kept from run to run."""
    return fetched(request.config.cache.mkdir("vllm-ascend"))


@pytest.fixture(scope="module")
def ranks(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two ranks of the engine."""
    made = Ranks(source, tmp_path_factory.mktemp("ascend"))
    yield made
    made.close()
