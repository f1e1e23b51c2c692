"""Whatever an engine started ends with it, in whichever session that is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from eplbd_vllm.demo.engines import started
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
