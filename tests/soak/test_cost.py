"""What the daemon costs its node: next to nothing while idle, a fraction of a core while it works.

Time of a core, not of a clock: it means the same on a machine that is busy with something else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.conftest import wait_until
from tests.runtime.process import Process, daemon, write_config
from tests.soak.fleet import Shape, attached
from tests.soak.gauges import core_s, held

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

IDLE_CORE = 0.01
IDLE_BYTES = 150e6
BUSY_CORE = 0.20
FORWARDS_PER_S = 50.0
WATCHED_S = 10.0
NODE = Shape(layers=58, experts=256, ranks=16, slots_per_rank=18, shift_forwards=3_000)
"""A node of 16 ranks that serves a model of DeepSeek's shape, as many tokens as it may be."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Process]:
    """A daemon as it comes, its default policy included."""
    with daemon(write_config(tmp_path, policy__name="incremental")) as process:
        wait_until(lambda: "serving" in process.events(), process.story)
        yield process


def test_an_idle_daemon_costs_next_to_nothing(served: Process) -> None:
    pid = served.popen.pid
    began_s, began = core_s(pid), time.monotonic()
    time.sleep(WATCHED_S)
    share = (core_s(pid) - began_s) / (time.monotonic() - began)
    now = held(pid)
    print(f"\nidle: {share:.2%} of a core, {now}")  # noqa: T201 - the figure
    assert share < IDLE_CORE
    assert now.resident_bytes < IDLE_BYTES


def test_sixteen_ranks_cost_a_fraction_of_a_core(served: Process, tmp_path: Path) -> None:
    """Heat of every step taken, its placements planned and its epochs led, by all its processes."""
    pid = served.popen.pid
    with attached(f"ipc://{tmp_path}/w.sock", NODE) as fleet:

        def serve(forwards: int) -> None:
            first, began = fleet.forwards, time.monotonic()
            while fleet.forwards < first + forwards:
                fleet.turn()
                ahead_s = (fleet.forwards - first) / FORWARDS_PER_S - (time.monotonic() - began)
                time.sleep(max(0.0, ahead_s))

        while not fleet.attached or "group ready" not in served.events():
            serve(10)
        began_s, before, maps = core_s(pid), fleet.forwards, fleet.flips
        serve(int(WATCHED_S * FORWARDS_PER_S))
        while fleet.flips == maps:
            serve(50)
        share = (core_s(pid) - began_s) / ((fleet.forwards - before) / FORWARDS_PER_S)
    print(f"\n16 ranks: {share:.1%} of a core, {fleet.flips} new maps, {held(pid)}")  # noqa: T201 - the figure
    assert share < BUSY_CORE
