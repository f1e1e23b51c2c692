"""`eplbd top` beside a daemon that really balances: through a pipe, and on a terminal with keys."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from eplbd.config import load
from eplbd.core.messages import Standing
from eplbd.runtime.follow import follow
from tests.runtime.conftest import PATIENCE_S, Connect, wait_until
from tests.runtime.process import GUESTS, daemon, write_config
from tests.runtime.workers import Worker, drive, group, welcomed

pytestmark = pytest.mark.slow

KEYS = {
    "policy__name": "tilt",
    "policy__shadow": ["hold"],
    "plugins__modules": [str(GUESTS / "tilt.py")],
    "balance__interval_s": 0.2,
    "balance__min_steps": 16,
    "balance__window_steps": 64,
    "balance__pause_s": 0.01,
    "stream__interval_s": 0.5,
    "metrics__enabled": False,
}


def once(config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """What a script sees of it."""
    command = [sys.executable, "-m", "eplbd", "top", "--once", "--config", str(config), *more]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@contextmanager
def served_on(workers: list[Worker]) -> Iterator[None]:
    """Serve in a thread, forward by forward with its heat, until the block ends."""
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            for worker in workers:
                worker.turn()
                if worker.agent.standing is Standing.IDLE:
                    worker.say(worker.heat(1))
            ended.wait(0.02)  # the picture is drawn by the same interpreter

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    try:
        yield
    finally:
        ended.set()
        serving.join()


def test_a_pipe_shows_a_group_that_was_balanced(tmp_path: Path, connect: Connect) -> None:
    config = write_config(tmp_path, **KEYS)
    with daemon(config) as served:
        served.told("READY=1")
        assert "no worker has said hello" in once(config).stdout
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")
        with served_on(workers):
            served.line("epoch ended")
            served.line("shadow scored")
            shown = once(config)
        assert shown.returncode == 0
        assert not shown.stderr
        for word in (
            "tilt",
            "hold",
            "2 attached",
            "settled",
            "2 layers in 2 rounds, tilt",
            "PAR",
            "layer",
        ):
            assert word in shown.stdout, f"{word}\n{shown.stdout}"
        assert max(map(len, shown.stdout.splitlines())) <= 80


def test_a_pipe_without_a_daemon_says_so(tmp_path: Path) -> None:
    shown = once(write_config(tmp_path))
    assert shown.returncode == 1
    assert "no daemon of this configuration is running" in shown.stderr
    assert not shown.stdout


@pytest.mark.anyio
async def test_a_key_holds_a_live_group(tmp_path: Path, connect: Connect) -> None:
    pytest.importorskip("textual", reason="no textual: pip install 'eplbd[top]'")
    from eplbd.top.app import Top
    from eplbd.top.command import command
    from tests.top.test_app import shows

    config = write_config(tmp_path, **KEYS)
    settings = load(config).config
    with daemon(config) as served:
        served.told("READY=1")
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")
        with served_on(workers), follow(settings) as follower:
            app = Top(follower, functools.partial(command, settings))
            with anyio.fail_after(2 * PATIENCE_S):
                async with app.run_test(size=(140, 40), notifications=True) as pilot:
                    await shows(pilot, "2 attached")
                    await pilot.press("f", *"full", "enter")
                    await shows(pilot, "PAUSED: ")
                    await pilot.press("r", *"over", "enter")
                    await shows(pilot, "command=resume")
        wait_until(lambda: served.events().count("command") == 2, "both are in the log")
        said = [line for line in served.lines if line["event"] == "command"]
        assert [line["command"] for line in said] == ["freeze", "resume"]
        assert [line["why"] for line in said] == ["full", "over"]
