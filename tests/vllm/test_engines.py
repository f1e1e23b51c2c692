"""Whatever an engine started ends with it, in whichever session that is, and nothing else does."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from eplbd_vllm.demo.engines import segments, started
from tests.runtime.conftest import wait_until

pytestmark = pytest.mark.slow

LEADER = """
import subprocess, sys
rank = [sys.executable, "-c", "import time; print('there', flush=True); time.sleep(600)"]
subprocess.Popen(rank, start_new_session=True)
subprocess.Popen(rank).wait()
"""
"""As torchrun does: its ranks are sessions of their own."""


def test_no_process_outlives_the_block(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEADER]
    with started(command, tmp_path / "log", dict(os.environ)) as engine:
        wait_until(lambda: len(engine.lines("there")) == 2, engine.story)
        assert len(engine.processes()) == 3
    assert engine.processes() == []


LEAVES = """
import multiprocessing, time
from multiprocessing.shared_memory import SharedMemory
lock, memory = multiprocessing.get_context("spawn").Lock(), SharedMemory(create=True, size=1)
print("there", "sem." + lock._semlock.name[1:], memory.name, flush=True)
time.sleep(600)
"""


def test_what_an_engine_leaves_in_shared_memory_is_removed_and_nobody_elses(tmp_path: Path) -> None:
    with started([sys.executable, "-c", LEAVES], tmp_path / "log", dict(os.environ)) as engine:
        wait_until(lambda: bool(engine.lines("there")), engine.story)
        theirs = set(engine.lines("there")[0].split()[1:])
        assert theirs <= segments()
        # Another engine, that starts meanwhile: its processes will look for these by name.
        lock = multiprocessing.get_context("spawn").Lock()
        memory = SharedMemory(create=True, size=1)
        ours = {"sem." + lock._semlock.name[1:], memory.name}  # type: ignore[attr-defined]  # noqa: SLF001
    try:
        assert segments() & (theirs | ours) == ours
    finally:
        memory.close()
        memory.unlink()
