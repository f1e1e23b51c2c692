"""Log lines on real descriptors: what they look like, and that nobody waits for their reader."""

from __future__ import annotations

import json
import logging
import os
import pty
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from eplbd.config import Log as Settings
from eplbd.core.events import CycleEnded, EpochEnded, Note
from eplbd.runtime.log import QUEUE_LINES, Log, open_log
from tests.runtime.conftest import wait_until

EPOCH = EpochEnded(
    group="g",
    term=1,
    epoch=41,
    outcome="settled",
    reason="",
    layers=3,
    moves=5,
    bytes=700,
    rounds=2,
    attempts=1,
    at=1234,
    prepare_s=0.01,
    stage_s=0.5,
    commit_s=0.1,
    stall_s=0.0,
    policy="greedy",
    lost_ranks=(3,),
)
CYCLE = CycleEnded(
    group="g",
    policy="greedy",
    outcome="failed",
    reason="policy timeout",
    par_before=1.5,
    par_predicted=1.1,
    par_realised=1.2,
    moves=0,
    bytes=0,
    epochs_settled=0,
    epochs_aborted=0,
    policy_s=10.0,
)


class Written:
    """What was written into a descriptor, readable after the log was closed."""

    text = ""

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@contextmanager
def _logged(
    settings: Settings, environment: Mapping[str, str] | None = None, *, terminal: bool = False
) -> Iterator[tuple[Log, Written]]:
    reader, writer = pty.openpty() if terminal else os.pipe()
    written = Written()
    with open_log(settings, environment or {}, writer) as log:
        yield log, written
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as stream:
        octets = b""
        with suppress(OSError):  # a terminal that nobody holds any more reads as an error
            while piece := stream.read(65_536):
                octets += piece
    written.text = octets.decode()


def _pipe_name(descriptor: int) -> str:
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"


def test_a_pipe_gets_one_json_object_per_line() -> None:
    with _logged(Settings()) as (log, written):
        log.effect(Note("warning", "rank lost", {"rank": 3, "peer": b"\1".hex(), "of": {1, 2}}))
    (line,) = written.lines()
    assert line.pop("timestamp").endswith("Z")
    expected = {"level": "warning", "event": "rank lost", "rank": 3, "peer": "01", "of": [1, 2]}
    assert line == expected


def test_an_epoch_is_one_line_with_everything_on_it() -> None:
    with _logged(Settings()) as (log, written):
        log.effect(EPOCH)
    (line,) = written.lines()
    assert line["level"] == "info"
    assert line["event"] == "epoch ended"
    assert {name: line[name] for name in ("epoch", "outcome", "moves", "stage_s")} == {
        "epoch": 41,
        "outcome": "settled",
        "moves": 5,
        "stage_s": 0.5,
    }
    assert line["lost_ranks"] == [3]


def test_a_failure_is_a_warning() -> None:
    with _logged(Settings(level="warning")) as (log, written):
        log.effect(EPOCH)
        log.effect(CYCLE)
    (line,) = written.lines()
    assert (line["event"], line["outcome"]) == ("cycle ended", "failed")


def test_a_terminal_gets_a_readable_line() -> None:
    with _logged(Settings(), terminal=True) as (log, written):
        log.effect(Note("info", "group ready", {"term": 2}))
    assert "group ready" in written.text
    assert "term" in written.text
    assert not written.text.startswith("{")


def test_console_can_be_had_on_a_pipe_and_has_no_colours() -> None:
    with _logged(Settings(format="console")) as (log, written):
        log.logger.info("group ready", term=2)
    assert "group ready" in written.text
    assert "term=2" in written.text
    assert "\x1b" not in written.text


@pytest.mark.parametrize(("level", "priority"), [("info", 6), ("warning", 4), ("error", 3)])
def test_the_journal_gets_a_priority(level: str, priority: int) -> None:
    reader, writer = os.pipe()
    with open_log(Settings(), {"JOURNAL_STREAM": _pipe_name(writer)}, writer) as log:
        log.effect(Note(level, "x", {}))
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert stream.read().startswith(b'<%d>{"' % priority)


def test_another_streams_journal_variable_is_not_ours() -> None:
    with _logged(Settings(), {"JOURNAL_STREAM": "8:1"}) as (log, written):
        log.logger.info("x")
    assert written.lines()[0]["event"] == "x"


def test_the_level_can_be_changed_for_loggers_already_bound() -> None:
    with _logged(Settings(level="error")) as (log, written):
        bound = log.logger.bind(child=7)
        bound.info("dropped")
        log.set_level("info")
        bound.info("kept")
    (line,) = written.lines()
    assert (line["event"], line["child"]) == ("kept", 7)


def test_other_libraries_records_are_lines_too() -> None:
    with _logged(Settings()) as (_, written):
        try:
            int("inner")
        except ValueError:
            logging.getLogger("asyncio").exception("Task failed")
    (line,) = written.lines()
    assert (line["level"], line["logger"]) == ("error", "asyncio")
    assert "ValueError: invalid literal" in line["event"]


@pytest.mark.parametrize(("level", "name"), [(5, "debug"), (25, "info"), (70, "critical")])
def test_a_level_in_between_is_the_one_below(level: int, name: str) -> None:
    with _logged(Settings(level="debug")) as (_, written):
        foreign = logging.getLogger("foreign")
        foreign.setLevel(1)
        foreign.log(level, "100 %d", 7)
    (line,) = written.lines()
    assert (line["level"], line["event"]) == (name, "100 7")


def test_a_field_may_be_called_like_an_argument() -> None:
    with _logged(Settings()) as (log, written):
        log.effect(Note("info", "100 %s", {"method_name": 1, "logger": 2, "level": 4}))
    (line,) = written.lines()
    assert (line["event"], line["level"], line["logger"]) == ("100 %s", "info", 2)


def test_nobody_waits_for_a_reader_that_does_not_read() -> None:
    reader, writer = os.pipe()
    lines = 2 * QUEUE_LINES
    with open_log(Settings(), {}, writer) as log:
        started = time.monotonic()
        for index in range(lines):
            log.logger.info("line", index=index, padding="x" * 100)
        assert time.monotonic() - started < lines * 1e-3
        assert log.statistics().lost > 0
        lost = log.statistics().lost
        with os.fdopen(reader, "rb") as stream:
            seen = [json.loads(stream.readline())]
            while seen[-1]["event"] != "log lines lost":
                seen.append(json.loads(stream.readline()))
            indices = [line["index"] for line in seen[:-1]]
            assert indices == sorted(indices)
            assert seen[-1]["lines"] <= lost
            os.set_blocking(stream.fileno(), False)
            wait_until(lambda: not log._sink.lines.qsize(), "the queue ran empty")  # noqa: SLF001
    os.close(writer)


def test_leaving_takes_no_longer_than_a_flush() -> None:
    reader, writer = os.pipe()
    with open_log(Settings(), {}, writer) as log:
        for _ in range(2 * QUEUE_LINES):
            log.logger.info("line", padding="x" * 100)
        started = time.monotonic()
    assert time.monotonic() - started < 4.0
    os.close(reader)  # the writer's pipe breaks, which ends its thread
    wait_until(
        lambda: all(thread.name != "eplbd-log" for thread in threading.enumerate()), "it ended"
    )
    os.close(writer)


def test_a_broken_pipe_is_survived_and_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open_log(Settings(), {}, writer) as log:
        log.logger.info("line")
        log.logger.info("line")
    assert (log.statistics().written, log.statistics().lost) == (0, 2)
    os.close(writer)
