"""The daemon as the operator has it: signals, restarts, full disks, one rebalance."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest
import zmq

from eplbd.core.messages import Standing
from eplbd.wire import stream as wire
from tests.runtime.conftest import PATIENCE_S, Connect, wait_until
from tests.runtime.process import GUESTS, Process, daemon, write_config
from tests.runtime.workers import PLACEMENT, Worker, drive, group, welcomed

pytestmark = pytest.mark.slow

TILT = {
    "policy__name": "tilt",
    "plugins__modules": [str(GUESTS / "tilt.py")],
    "balance__interval_s": 0.1,
    "balance__min_steps": 16,
    "balance__pause_s": 0.01,
}


def _settle(workers: list[Worker], epoch: int = 1) -> None:
    """Send heat until this epoch is in force on every rank."""

    def settled() -> bool:
        for worker in workers:
            if worker.agent.standing is Standing.IDLE:
                worker.say(worker.heat(1))
        return all(worker.agent.epoch >= epoch for worker in workers)

    drive(workers, lambda: welcomed(workers), "both were welcomed")
    drive(workers, settled, f"epoch {epoch} settled")


# --- start and stop -----------------------------------------------------------------------------


def test_ready_is_said_once_it_is_true(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path)) as served:
        served.told("READY=1")
        served.line("serving")
        assert served.events() == ["policy ready", "serving"]
        # First of all it asks for time: a policy that compiles takes longer than a manager waits.
        assert [said.partition("=")[0] for said in served.words][:2] == [
            "EXTEND_TIMEOUT_USEC",
            "READY",
        ]
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_clean(tmp_path: Path, connect: Connect, number: signal.Signals) -> None:
    with daemon(write_config(tmp_path)) as served:
        served.told("READY=1")
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")
        served.popen.send_signal(number)
        assert served.wait() == 0
        served.told("STOPPING=1")
        assert served.line("stopping") is served.lines[-1]
        assert not served.noise


def test_a_stop_does_not_wait_for_a_committing_epoch_for_ever(
    tmp_path: Path, connect: Connect
) -> None:
    """The engine idles: the armed forward does not come. The ranks end the epoch by themselves."""
    with daemon(write_config(tmp_path, **TILT)) as served:
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")
        for worker in workers:
            worker.idle = True

        def stuck() -> bool:
            for worker in workers:
                worker.say(worker.heat(1))
            return workers[0].agent.standing is Standing.CONFIRMED

        drive(workers, stuck, "rank 0 is confirmed")
        started = time.monotonic()
        served.popen.send_signal(signal.SIGTERM)
        assert served.wait() == 0
        assert time.monotonic() - started > 4.0
        assert served.line("stopped midway, the workers end the epoch")["level"] == "warning"


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with daemon(write_config(tmp_path)) as served:
        served.told("READY=1")
        for _ in range(2):
            served.popen.send_signal(signal.SIGTERM)
        assert served.wait() == 0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"policy__name": "hodl"}, "hold"),
        ({"daemon__socket": "ipc:///nowhere/w.sock"}, "daemon.socket"),
        ({"daemon__state_dir": "/nowhere/state"}, "daemon.state_dir"),
        ({"balance__interval": 1}, "interval_s"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(
    tmp_path: Path, keys: dict[str, object], words: str
) -> None:
    with daemon(write_config(tmp_path, **keys)) as served:
        assert served.wait() != 0
        wait_until(lambda: words in served.story(), f"{words} in {served.story()}")
        assert "Traceback" not in served.story()
        assert not any(said.startswith("READY") for said in served.words)


def test_a_second_daemon_is_refused_and_the_first_serves_on(
    tmp_path: Path, connect: Connect
) -> None:
    config = write_config(tmp_path)
    with daemon(config) as first:
        first.told("READY=1")
        with daemon(config) as second:
            assert second.wait() != 0
            refused = f"another eplbd (process {first.popen.pid}) holds"
            wait_until(lambda: refused in second.story(), second.story())
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")


def test_a_killed_daemon_leaves_nothing_that_locks_the_next_one_out(
    tmp_path: Path, connect: Connect
) -> None:
    config = write_config(tmp_path)
    workers = group(connect)
    for term in (1, 2, 3):
        with daemon(config) as served:
            served.told("READY=1")
            drive(
                workers,
                lambda: all(w.agent.connected and w.agent.term == term for w in workers),  # noqa: B023 - called here
                f"term {term} began",
            )
            served.popen.kill()


# --- one rebalance ------------------------------------------------------------------------------


def test_heat_becomes_a_new_map_on_every_rank(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path, **TILT)) as served:
        workers = group(connect)
        _settle(workers)
        ended = served.line("epoch ended")
        assert (ended["outcome"], ended["epoch"], ended["moves"]) == ("settled", 1, 2)
        digests = {worker.agent.placement.digest for worker in workers}
        assert len(digests) == 1
        assert digests != {PLACEMENT.digest}
        served.told("STATUS=epoch 1 settled, 2 workers")


def test_a_restarted_daemon_learns_the_map_from_the_ranks(tmp_path: Path, connect: Connect) -> None:
    config = write_config(tmp_path, **TILT)
    workers = group(connect)
    with daemon(config) as served:
        _settle(workers)
        served.line("epoch ended")
        served.popen.kill()
    with daemon(config) as served:
        drive(workers, lambda: "group ready" in served.events(), "the group was taken over")
        ready = served.line("group ready")
        assert (ready["term"], ready["epoch"]) == (2, 1)
        assert ready["digest"] == workers[0].agent.placement.digest


def test_a_new_life_of_the_group_gets_a_term_above_the_stored_one(
    tmp_path: Path, connect: Connect
) -> None:
    """The ranks know no term any more; the state directory does."""
    config = write_config(tmp_path, **TILT)
    with daemon(config) as served:
        _settle(group(connect, "1"))
        wait_until(lambda: any((tmp_path / "state").glob("*.placement")), "the epoch was stored")
        served.popen.send_signal(signal.SIGTERM)
        assert served.wait() == 0
    with daemon(config):
        workers = group(connect, "2")
        drive(workers, lambda: welcomed(workers), "both were welcomed")
        assert {worker.agent.term for worker in workers} == {2}


def test_a_full_disk_costs_the_record_and_nothing_else(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path, **TILT)) as served:
        served.told("READY=1")
        resource.prlimit(served.popen.pid, resource.RLIMIT_FSIZE, (64, 64))
        _settle(group(connect))
        refused = served.line("placement not stored")
        assert refused["level"] == "error"
        assert "File too large" in refused["reason"]
        assert served.line("epoch ended")["outcome"] == "settled"
        assert not any((tmp_path / "state").glob("*.placement"))
        served.popen.send_signal(signal.SIGTERM)
        assert served.wait() == 0


def test_a_damaged_record_is_said_and_taken_as_absent(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "default-01234567.placement").write_bytes(b"\0" * 100)
    with daemon(write_config(tmp_path)) as served:
        served.told("READY=1")
        refused = served.line("stored placement refused, taken as absent")
        assert refused["kept_as"].endswith(".placement.refused")
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")


# --- reload -------------------------------------------------------------------------------------


def _reload(served: Process, times: int = 1) -> None:
    served.popen.send_signal(signal.SIGHUP)
    served.told("READY=1", times + 1)


def test_a_reload_changes_what_can_be_changed(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path)) as served:
        served.told("READY=1")
        write_config(tmp_path, **TILT, log__level="debug")
        _reload(served)
        changed = served.line("configuration reloaded")["changed"]
        assert {"policy.name", "plugins.modules", "balance.interval_s", "log.level"} <= set(changed)
        assert "settings wait for a restart" not in served.events()
        _settle(group(connect))
    reloading = next(said for said in served.words if said.startswith("RELOADING=1"))
    assert reloading.split("\n")[1].startswith("MONOTONIC_USEC=")
    assert served.words.index(reloading) < len(served.words) - 1


def test_a_reload_says_what_waits_for_a_restart(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path)) as served:
        served.told("READY=1")
        write_config(tmp_path, daemon__socket=f"ipc://{tmp_path}/other.sock")
        _reload(served)
        assert served.line("settings wait for a restart")["keys"] == ["daemon.socket"]
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed where they always were")
        assert not (tmp_path / "other.sock").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"balance__interval": 1}, "interval_s"),
        ({"policy__name": "hodl"}, "hold"),
        ({"plugins__modules": ["/nowhere/policy.py"], "policy__name": "tilt"}, "nowhere"),
    ],
)
def test_a_bad_reload_keeps_what_was(
    tmp_path: Path, connect: Connect, keys: dict[str, object], words: str
) -> None:
    with daemon(write_config(tmp_path, **TILT)) as served:
        served.told("READY=1")
        write_config(tmp_path, **{**TILT, **keys})
        _reload(served)
        assert words in served.line("configuration not reloaded")["reason"]
        assert "configuration reloaded" not in served.events()
        _settle(group(connect))
        write_config(tmp_path, **TILT, balance__par_trigger=1.5)
        _reload(served, times=2)
        assert served.line("configuration reloaded")["changed"] == ["balance.par_trigger"]


def test_what_happens_beside_groups_is_told_on_the_stream_too(tmp_path: Path) -> None:
    """What was restored, kept and read again; whoever only watches the stream misses no line."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "default-01234567.placement").write_bytes(b"\0" * 100)
    (tmp_path / "state" / "orders.json").write_text("{")
    with daemon(write_config(tmp_path)) as served:
        served.told("READY=1")
        write_config(tmp_path, balance__par_trigger=1.5, daemon__socket_mode="0600")
        _reload(served)
        write_config(tmp_path, balance__nothing=1)
        _reload(served, times=2)
        served.line("configuration not reloaded")
        told = _told(tmp_path)
        ours = [
            "stored placement refused, taken as absent",
            "orders refused, all is frozen",
            "policy ready",
            "configuration reloaded",
            "settings wait for a restart",
            "configuration not reloaded",
        ]
        assert [event for event in told if event in ours] == ours
        assert [event for event in served.events() if event in ours] == ours


def _told(folder: Path) -> list[str]:
    """The notes that the daemon which lives in `folder` has told so far."""
    found = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as asker:
        asker.setsockopt(zmq.LINGER, 0)
        asker.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1e3))
        asker.connect(f"ipc://{folder}/events.sock.replay")
        asker.send_multipart([b"", wire.number(0)])
        while (answer := wire.answered(asker.recv_multipart())) is not None:
            found.append(answer[1])
    return [event.event for event in found if isinstance(event, wire.Noted)]


# --- the service manager's watchdog -------------------------------------------------------------


def test_the_watchdog_is_fed_while_the_core_steps(tmp_path: Path) -> None:
    with daemon(write_config(tmp_path), {"WATCHDOG_USEC": "200000"}) as served:
        served.told("WATCHDOG=1", times=3)


def test_no_watchdog_no_food(tmp_path: Path) -> None:
    with daemon(write_config(tmp_path), {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}) as served:
        served.told("READY=1")
        served.popen.send_signal(signal.SIGTERM)
        assert served.wait() == 0
        assert not any(said.startswith("WATCHDOG") for said in served.words)


def test_nobody_reads_the_log_and_the_daemon_serves_on(tmp_path: Path, connect: Connect) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    config = write_config(tmp_path)
    with daemon(config, stdout=writer) as served:
        os.close(writer)
        served.told("READY=1")
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")
        served.popen.send_signal(signal.SIGTERM)
        assert served.wait() == 0
