"""Around the clock: a real daemon over lives of its group, with its watch-dogs awake."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from eplbd.core import agent_events as a
from eplbd.core import messages as m
from eplbd.core.placement import Placement
from tests.runtime.conftest import Connect, wait_until
from tests.runtime.process import GUESTS, Process, daemon, write_config
from tests.runtime.workers import PLACEMENT, Register, Worker, drive, group, welcomed

pytestmark = pytest.mark.slow

QUICK: dict[str, object] = {
    "plugins__modules": [str(GUESTS / "tilt.py")],
    "policy__name": "tilt",
    "balance__interval_s": 0.1,
    "balance__min_steps": 16,
    "balance__window_steps": 64,
    "balance__pause_s": 0.01,
}

SOON: dict[str, object] = {
    "alarms__no_worker_s": 0.5,
    "alarms__heat_stale_s": 0.5,
    "alarms__epoch_overdue_s": 0.5,
}


def of(served: Process, event: str, **fields: object) -> list[dict[str, Any]]:
    return [
        line
        for line in served.lines
        if line["event"] == event and all(line[name] == value for name, value in fields.items())
    ]


def heat_until(workers: Sequence[Worker], happened: Callable[[], object], what: str) -> None:
    """Send heat with every forward until it happened."""

    def told() -> bool:
        for worker in workers:
            if not worker.agent.pending:
                worker.say(worker.heat(1))
        return bool(happened())

    drive(workers, lambda: welcomed(workers), "both were welcomed")
    drive(workers, told, what)


def stopped(served: Process) -> None:
    served.popen.send_signal(signal.SIGTERM)
    assert served.wait() == 0


def learned(config: Path, connect: Connect) -> Placement:
    """One life of a group, under one life of the daemon; where it settled."""
    with daemon(config) as served:
        served.told("READY=1")
        workers = group(connect)
        heat_until(workers, lambda: of(served, "cycle ended"), "a rebalance was measured")
        stopped(served)
        assert workers[0].agent.placement != PLACEMENT
        return workers[0].agent.placement


def test_a_new_life_begins_where_the_last_one_settled(tmp_path: Path, connect: Connect) -> None:
    config = write_config(tmp_path, **QUICK)
    placement = learned(config, connect)
    with daemon(config) as served:
        served.told("READY=1")
        workers = group(connect, "2")
        assert {worker.agent.placement for worker in workers} == {PLACEMENT}
        drive(
            workers,
            lambda: {worker.agent.placement for worker in workers} == {placement},
            "the group went back, without any heat",
        )
        assert served.line("going back to the stored placement")["moves"] == 2
        drive(workers, lambda: bool(of(served, "cycle ended")), "its books were closed")
        ended = served.line("cycle ended")
        assert (ended["policy"], ended["outcome"], ended["moves"]) == ("stored", "applied", 2)
        stopped(served)


def test_not_where_the_operator_does_not_want_it(tmp_path: Path, connect: Connect) -> None:
    learned(write_config(tmp_path, **QUICK), connect)
    with daemon(write_config(tmp_path, **QUICK, balance__opening="none")) as served:
        served.told("READY=1")
        workers = group(connect, "2")
        drive(workers, lambda: welcomed(workers), "both were welcomed")
        before = workers[0].forward
        drive(workers, lambda: workers[0].forward > before + 200, "time passed")
        assert {worker.agent.placement for worker in workers} == {PLACEMENT}
        assert not of(served, "no heat yet, taken to be even")
        stopped(served)


class Idle(Worker):
    """Of an engine without traffic: it runs no forward until `busy`."""

    busy = False

    def turn(self) -> None:
        self.forward -= not self.busy
        super().turn()


def test_without_traffic_heat_is_taken_to_be_even(tmp_path: Path, connect: Connect) -> None:
    """Slots 0 1 2 | 3 0 1 are balanced then: it is said, and nothing moves."""
    with daemon(write_config(tmp_path, **QUICK)) as served:
        served.told("READY=1")
        register: Register = {}
        workers = [Idle(rank, connect, register, "1") for rank in range(2)]
        even = "no heat yet, taken to be even"
        drive(workers, lambda: bool(of(served, even)), "the policy's question was thought of")
        for worker in workers:
            worker.busy = True
        heat_until(workers, lambda: of(served, "epoch ended"), "heat that is measured counts")
        assert len(of(served, even)) == 1
        stopped(served)


# --- watch-dogs ---------------------------------------------------------------------------------


def raised(served: Process, alarm: str) -> list[dict[str, Any]]:
    return of(served, "alarm raised", alarm=alarm)


def test_a_daemon_without_workers_says_so_until_one_comes(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path, **SOON)) as served:
        served.told("READY=1")
        wait_until(lambda: bool(raised(served, "no-worker")), served.story)
        (line,) = raised(served, "no-worker")
        assert line["level"] == "error"
        assert "does not reach the socket" in line["reason"]
        workers = group(connect)
        drive(workers, lambda: bool(of(served, "alarm cleared", alarm="no-worker")), "cleared")
        drive(workers[:1], lambda: bool(raised(served, "rank-missing")), "the other is missed")
        assert "ranks [1]" in raised(served, "rank-missing")[0]["reason"]
        stopped(served)


def test_forwards_without_heat_are_an_alarm(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path, **QUICK, **SOON, balance__opening="none")) as served:
        served.told("READY=1")
        workers = group(connect)
        drive(workers, lambda: bool(raised(served, "heat-stale")), "heat is missed")
        assert "no step of heat is complete" in raised(served, "heat-stale")[0]["reason"]
        heat_until(workers, lambda: of(served, "alarm cleared", alarm="heat-stale"), "cleared")
        stopped(served)


def test_an_epoch_that_does_not_end_is_an_alarm(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path, **QUICK, **SOON)) as served:
        served.told("READY=1")
        workers = group(connect)
        workers[1].idle = True
        heat_until(workers, lambda: raised(served, "epoch-overdue"), "it is overdue")
        assert "waits for ranks [1]" in raised(served, "epoch-overdue")[0]["reason"]


class Slow(Worker):
    """Its forwards take twice as long while weights move."""

    pulses = 0

    def perform(self, effect: a.AgentEffect) -> None:
        if isinstance(effect, a.SayPulse):
            self.pulses += 1
            self.say(m.Pulse(self.forward, forward_s=0.01, staging_forward_s=0.02))
        else:
            super().perform(effect)


def test_forwards_that_take_longer_slow_moves_down(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path, **QUICK)) as served:
        served.told("READY=1")
        register: Register = {}
        workers = [Slow(rank, connect, register, "1") for rank in range(2)]
        drive(workers, lambda: all(slow.pulses > 1 for slow in workers), "times were told")
        heat_until(workers, lambda: of(served, "moves slowed down"), "it was said")
        line = served.line("moves slowed down")
        assert (line["level"], line["inflation"], line["stride"]) == ("warning", 2.0, 8)
        stopped(served)


class Unwilling(Worker):
    """Has no room for what it is to receive."""

    def perform(self, effect: a.AgentEffect) -> None:
        if isinstance(effect, a.Reserve):
            prepare = effect.prepare
            self.step(a.ReserveFailed(prepare.term, prepare.epoch, "no room on this rank"))
        else:
            super().perform(effect)


def test_an_aborted_epoch_is_told_in_one_record(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path, **QUICK)) as served:
        served.told("READY=1")
        register: Register = {}
        workers = [Worker(0, connect, register, "1"), Unwilling(1, connect, register, "1")]
        heat_until(workers, lambda: of(served, "epoch ended"), "an epoch ended")
        line = of(served, "epoch ended")[0]
        assert (line["level"], line["outcome"]) == ("warning", "aborted")
        assert line["reason"] == "rank 1: no room on this rank"
        assert line["story"][0] == "+0.000 s prepare"
        assert any("rank 1: nack, no room on this rank" in told for told in line["story"])
        assert line["story"][-1].endswith("aborted")
        stopped(served)
