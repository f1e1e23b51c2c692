"""Hours of serving in minutes: shifting traffic, lost messages, daemons that come and go.

Two groups serve at once. One daemon stays, and what it holds of the machine has to stay flat; the
other is stopped or killed again and again, its engine too, and each of its lives has to hold what
the one before it held. Forwards come fifty times as fast as an engine makes them, and the intervals
of the daemon are as much shorter. `EPLBD_NIGHTLY=1` makes of the short run a long one.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

import pytest

from tests.runtime.process import Process, daemon, write_config
from tests.soak.fleet import Fleet, Shape, attached
from tests.soak.gauges import Held, disk_bytes, held

NIGHTLY = bool(os.environ.get("EPLBD_NIGHTLY"))
LIVES, LIFE_S = (30, 20.0) if NIGHTLY else (3, 4.0)
"""Of the daemon that comes and goes: ten minutes, or under one with all that starts and ends."""
PACE = 2_400.0
"""Forwards per second; 8 hours at 50 are 10 minutes at this."""
PATIENCE_S = 300.0
FLAT = 1.05
POOL = 2
"""Threads, and files, that come and go with work: writes to the disk have a pool."""
RECORD_BYTES = 4 << 20
STATE_BYTES = 1 << 20

HURRY: dict[str, object] = {
    "policy__name": "incremental",
    "balance__interval_s": 0.2,
    "balance__pause_s": 0.05,
    "balance__horizon_s": 12.0,
    "epoch__margin_forwards": 768,
    "epoch__guard_forwards": 192,
    "record__enabled": True,
    "record__max_bytes": RECORD_BYTES,
}
"""The defaults with every time a fiftieth: forwards are as much faster."""


@dataclass
class Group:
    """A fleet and the daemon that it has at the moment."""

    folder: Path
    fleet: Fleet
    samples: list[Held] = field(default_factory=list)
    """Of the daemon that stays: one a second; of the one that goes: one at the end of each life."""

    def begin(self, stack: ExitStack, fleets: list[Fleet]) -> Process:
        """Start a daemon; it is ready when this returns, and meanwhile all fleets serve."""
        process: Process = stack.enter_context(daemon(self.folder / "eplbd.toml"))
        ready = "READY=1"
        serve(fleets, lambda: any(said.startswith(ready) for said in process.words), process.story)
        return process


@contextmanager
def gathered(folder: Path, loss: float) -> Iterator[Group]:
    """A group whose daemon will live in `folder`."""
    folder.mkdir()
    (folder / "traces").mkdir()
    write_config(folder, record__dir=str(folder / "traces" / "recorded"), **HURRY)
    with attached(f"ipc://{folder}/w.sock", Shape(loss=loss)) as fleet:
        yield Group(folder, fleet)


def serve(
    fleets: list[Fleet], until: Callable[[], bool], what: str | Callable[[], str] = ""
) -> None:
    """Turn all fleets at the pace until something is so; fail with `what` if it is not in time."""
    began = time.monotonic()
    before = [fleet.forwards for fleet in fleets]
    while not until():
        gone_s = time.monotonic() - began
        if gone_s > PATIENCE_S:
            pytest.fail(f"did not happen: {what if isinstance(what, str) else what()}")
        ahead_s = min(
            (fleet.forwards - first) / PACE for fleet, first in zip(fleets, before, strict=True)
        )
        if ahead_s > gone_s:
            time.sleep(ahead_s - gone_s)
        for fleet in fleets:
            fleet.turn()


def settles(fleets: list[Fleet], story: Callable[[], str]) -> None:
    """Without losses, every group gets a new map: nothing is stuck, whatever happened."""
    before = [fleet.flips for fleet in fleets]
    for fleet in fleets:
        fleet.shape = replace(fleet.shape, loss=0.0)
    serve(
        fleets,
        lambda: all(fleet.flips > old for fleet, old in zip(fleets, before, strict=True)),
        story,
    )


def told(process: Process) -> str:
    """A daemon's log, for a test that fails: how often each line, and the last ones."""
    keys = ("event", "outcome", "level")
    lines = Counter(tuple(line.get(key, "") for key in keys) for line in process.lines)
    return f"{lines}\n{process.lines[-3:]}\n{''.join(process.noise)}"


def of_the_second_half(samples: list[Held], figure: Callable[[Held], int]) -> tuple[float, float]:
    """A figure at the beginning and at the end of the second half; the first half warms up."""
    second = [figure(sample) for sample in samples[len(samples) // 2 :]]
    third = max(1, len(second) // 3)
    return statistics.median(second[:third]), statistics.median(second[-third:])


@pytest.mark.slow
@pytest.mark.timeout(LIVES * LIFE_S + 10 * PATIENCE_S)
def test_nothing_grows_and_nothing_diverges(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stays = stack.enter_context(gathered(tmp_path / "stays", loss=0.01))
        goes = stack.enter_context(gathered(tmp_path / "goes", loss=0.02))
        fleets = [stays.fleet, goes.fleet]
        kept = stays.begin(stack, fleets)
        for life in range(LIVES):
            _live(stays, goes, kept.popen.pid)
            if life % 3 == 1:
                goes.fleet.restart()
        with ExitStack() as last:
            process = goes.begin(last, fleets)
            settles(fleets, lambda: f"a new map for each\n{told(kept)}\n{told(process)}")
        print(f"\n{stays.fleet.forwards} forwards, {stays.fleet.flips} maps, {stays.samples[-1]}")  # noqa: T201 - the figures of a long run
        _check_held(stays.samples)
        _check_lives(goes.samples)
        _check_disk([stays, goes])
        assert not kept.noise, kept.noise
        # Traffic that shifts in the middle of rebalances is no fault of who plans them.
        assert not any("suspended" in event for event in kept.events()), told(kept)


def _live(stays: Group, goes: Group, kept: int) -> None:
    """One life of the daemon that goes: begun, sampled at its end, stopped or killed."""
    fleets = [stays.fleet, goes.fleet]
    with ExitStack() as life:
        process = goes.begin(life, fleets)
        until = time.monotonic() + LIFE_S
        while time.monotonic() < until:
            look_at = time.monotonic() + 1.0
            serve(fleets, lambda: time.monotonic() > look_at)  # noqa: B023 - called here
            stays.samples.append(held(kept))
        goes.samples.append(held(process.popen.pid))
        stop = signal.SIGTERM if len(goes.samples) % 2 else signal.SIGKILL
        process.popen.send_signal(stop)
        serve(fleets, lambda: process.popen.poll() is not None, f"it ended by {stop.name}")
        assert not process.noise, process.noise


def _check_held(samples: list[Held]) -> None:
    for name in ("descriptors", "threads", "processes", "memory_bytes"):
        first, last = of_the_second_half(samples, attrgetter(name))
        assert last <= first * FLAT + POOL, f"{name}: {first} became {last}"


def _check_lives(samples: list[Held]) -> None:
    for name in ("descriptors", "threads", "processes"):
        figures = [getattr(sample, name) for sample in samples]
        assert figures[-1] <= figures[0] * FLAT + POOL, f"{name}, life by life: {figures}"


def _check_disk(groups: list[Group]) -> None:
    for group in groups:
        assert disk_bytes(group.folder / "state") < STATE_BYTES
        # A record of its own for each life of an engine.
        assert disk_bytes(group.folder / "traces") < RECORD_BYTES * (group.fleet.lives + 1)
        assert group.fleet.lost > 0


@pytest.mark.parametrize(
    ("name", "each"), [("descriptors", 1), ("threads", 1), ("memory_bytes", 1_000_000)]
)
def test_a_leak_would_be_seen(name: str, each: int) -> None:
    flat = Held(20, 10, 2, 50_000_000, 60_000_000)
    _check_held([flat] * 30)
    with pytest.raises(AssertionError, match=name):
        _check_held([replace(flat, **{name: getattr(flat, name) + each * i}) for i in range(30)])
