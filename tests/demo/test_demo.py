"""`eplbd demo` as a person runs it: real daemon, real ranks, and nothing is left of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.slow

PATIENCE_S = 100.0
STEPS = 56
"""The first epoch flips around step 30, most of the first plan by step 50."""

SMALL = ("--ranks", "2", "--policy", "hold")
"""Enough where nothing has to move; it starts in half the time."""


@dataclass
class Demo:
    """A run: its process, and where its output goes."""

    popen: subprocess.Popen[bytes]
    folder: Path

    @property
    def said(self) -> str:
        """What has been shown so far."""
        return (self.folder / "stderr").read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """Every process below it."""
        found: list[psutil.Process] = psutil.Process(self.popen.pid).children(recursive=True)
        return found

    def child(self, *words: str) -> psutil.Process:
        """The first child whose command line has all these words."""
        return next(c for c in self.children() if all(w in " ".join(c.cmdline()) for w in words))

    def wait_for(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert time.monotonic() < deadline, f"did not happen: {what}; {self.said}"
            assert self.popen.poll() is None, f"ended before: {what}; {self.said}"
            time.sleep(0.05)

    def serving(self) -> None:
        """Wait until steps are taken."""
        self.wait_for(lambda: "demo: step " in self.said, "a step was taken")

    def end(self) -> tuple[int, dict[str, Any]]:
        """Exit status and figures; nothing but these was on stdout."""
        status = self.popen.wait(PATIENCE_S)
        return status, json.loads((self.folder / "stdout").read_text())


@contextmanager
def demo(folder: Path, *words: str) -> Iterator[Demo]:
    """Start one with its own folder for temporary files; nothing may be left when it ends."""
    temporary = folder / "t"
    temporary.mkdir()
    command = [sys.executable, "-m", "eplbd", "demo", "--json", "-", *words]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    seen: list[psutil.Process] = []
    with (
        (folder / "stdout").open("wb") as stdout,
        (folder / "stderr").open("wb") as stderr,
        subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment) as popen,
    ):
        run = Demo(popen, folder)
        try:
            run.wait_for(lambda: len(run.children()) >= 3, "daemon and workers were started")
            seen = run.children()
            yield run
            popen.wait(PATIENCE_S)
        finally:
            popen.kill()
    assert not [child for child in seen if child.is_running()], "a process outlived the run"
    assert not any(temporary.iterdir()), "a file outlived the run"


def synthetic_trace(folder: Path) -> Path:
    """Four windows of 9 layers, 24 experts; expert 3 takes a quarter of each."""
    heat = np.random.default_rng(0).integers(30, 60, (4, 9, 24))
    heat[:, :, 3] = 330
    labels = np.array([f"part {i}" for i in range(4)])
    path = folder / "trace.npz"
    np.savez(path, heat=heat, topk=np.array(3), labels=labels, meta=np.array("{}"))
    return path


def test_it_balances_and_proves_it(tmp_path: Path) -> None:
    with demo(tmp_path, "--steps", str(STEPS)) as run:
        status, found = run.end()
    assert status == 0, run.said
    assert found["ok"], run.said
    assert found["outputs_identical"]
    assert (found["steps"], found["dispatch"]) == (STEPS, "all-to-all")
    assert found["epochs_settled"] >= 1
    assert found["epochs_aborted"] == 0
    assert found["moves"] > 0
    assert found["bytes_moved"] > 0
    assert 1.0 < found["par_after"] < found["par_before"] < 3.0
    assert found["stall_us_max"] < 1e6
    for name in ("forward_ms_p50", "forward_ms_p50_without_hook", "hook_us_p50", "hook_us_p99"):
        assert found[name] > 0
    assert found["hook_us_p50"] < found["forward_ms_p50"] * 1e3 / 20
    assert run.said.rstrip().splitlines()[-1].startswith("demo: hook ")


def test_it_replays_a_trace_under_replicated_dispatch(tmp_path: Path) -> None:
    words = ("--dispatch", "replicated", "--trace", str(synthetic_trace(tmp_path)))
    with demo(tmp_path, "--steps", str(STEPS), *words) as run:
        status, found = run.end()
    assert status == 0, run.said
    assert found["outputs_identical"]
    assert (found["layers"], found["experts"]) == (6, 24)
    assert found["topics"][0] == "part 0"
    assert found["par_after"] < found["par_before"]


@pytest.mark.parametrize("dispatch", ["all-to-all", "replicated"])
def test_a_broken_map_is_seen(tmp_path: Path, dispatch: str) -> None:
    with demo(tmp_path, *SMALL, "--steps", "32", "--break-map", "--dispatch", dispatch) as run:
        if dispatch == "replicated":
            # The audit hears of a step some steps later.
            run.wait_for(lambda: "placement frozen" in run.said, "the daemon froze the placement")
        status, found = run.end()
    assert status == 1
    assert not found["ok"]
    assert not found["outputs_identical"]
    assert found["broken"]
    assert found["first_difference"] >= 16, "nothing differs before the map is broken"
    assert bool(found["frozen"]) == (dispatch == "replicated")
    assert found["verdict"][0].startswith("FAILED: outputs differ from the twin's in ")


def test_an_interrupt_ends_it_in_order(tmp_path: Path) -> None:
    with demo(tmp_path, *SMALL) as run:
        run.serving()
        run.popen.send_signal(signal.SIGINT)
        status, found = run.end()
    assert status == 130
    assert found["faults"] == ["interrupted by SIGINT"]
    assert found["outputs_identical"]
    assert "eplbd: stopping" in run.said


def test_ranks_serve_on_without_their_daemon(tmp_path: Path) -> None:
    with demo(tmp_path, *SMALL, "--steps", "24") as run:
        run.serving()
        run.child("eplbd serve").kill()
        status, found = run.end()
    assert status == 1
    assert found["steps"] == 24
    assert found["outputs_identical"]
    assert "the daemon was ended by SIGKILL after step" in found["faults"][0]
    assert "serve on with the map in force" in run.said


def test_a_lost_rank_ends_it_and_is_named(tmp_path: Path) -> None:
    with demo(tmp_path, *SMALL) as run:
        run.serving()
        workers = [c for c in run.children() if "eplbd.demo.worker" in " ".join(c.cmdline())]
        workers[1].kill()
        status, found = run.end()
    assert status == 1
    assert found["faults"] == ["rank 1 was ended by SIGKILL"]


def test_nothing_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    with demo(tmp_path, *SMALL) as run:
        run.serving()
        left = run.children()
        run.popen.kill()
        assert not psutil.wait_procs(left, timeout=10)[1]
        for folder in (tmp_path / "t").iterdir():
            # Nobody was left to remove it.
            for file in sorted(folder.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            folder.rmdir()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--policy", "gredy"), "unknown policy `gredy`; did you mean `greedy`?"),
        (("--trace", "/nowhere.npz"), "/nowhere.npz: does not exist"),
        (("--json", "/nowhere/f.json"), "--json /nowhere/f.json: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_said(words: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "eplbd", "demo", *words]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    shown = (done.stdout + done.stderr).decode()
    assert done.returncode == 1
    assert said in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("missing", ["torch", "rich"])
def test_it_says_which_extra_is_missing(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; import eplbd.cli; eplbd.cli.main()"
    command = [sys.executable, "-c", program, "demo"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    wanted = f"Error: eplbd demo needs {missing}: pip install 'eplbd[cpu,policies]'\n"
    assert done.stderr.decode() == wanted


def test_the_run_itself_imports_no_torch() -> None:
    program = "import sys, eplbd.demo.command; print('torch' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().split() == ["False", "False"]
