"""Log lines: readable on a terminal, one JSON object per line for a journal.

Owns rendering and writing. A reader that stops reading stops nothing here: lines wait in a bounded
queue for a thread of their own, and what does not fit is counted and reported later. Must not know
what is worth a line; the core does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger, Processor

from eplbd.config import Log as Settings
from eplbd.core.events import CycleEnded, EpochEnded, Note, ShadowScored

QUEUE_LINES = 4_096
FLUSH_S = 1.0
DEBUG = 10
LEVELS = {"debug": DEBUG, "info": 20, "warning": 30, "error": 40, "critical": 50}
# sd-daemon(3): the journal takes this prefix off and files the line under it.
PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """Lines since the start."""

    written: int
    lost: int
    """The queue was full, since nobody read; or the write failed."""


class Log:
    """Takes lines from any thread and never waits. Made by `open_log`."""

    def __init__(self, render: Processor, level: str) -> None:
        self._level = LEVELS[level]
        self._stopped = False
        self._sink = _Sink()
        processors: list[Processor] = [
            structlog.stdlib.add_log_level,
            self._drop_below_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ]
        self.logger: FilteringBoundLogger = structlog.wrap_logger(
            self._sink,
            processors=processors,
            # Everything passes here: a reload changes the level of loggers already bound, too.
            wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        ).bind()
        """For whoever writes lines of their own."""

    def effect(self, effect: Note | EpochEnded | CycleEnded | ShadowScored) -> None:
        """The line of an effect; for an epoch and for a cycle, the one with everything on it."""
        match effect:
            case Note(level, event, fields):
                # Bound first: a field may be called like an argument.
                self.logger.bind(**fields).log(LEVELS[level], event)
            case EpochEnded():
                level = "info" if effect.outcome == "settled" else "warning"
                self.logger.log(LEVELS[level], "epoch ended", **asdict(effect))
            case CycleEnded():
                level = "warning" if effect.outcome in ("failed", "refused") else "info"
                self.logger.log(LEVELS[level], "cycle ended", **asdict(effect))
            case ShadowScored():
                self.logger.info("shadow scored", **asdict(effect))

    def set_level(self, level: str) -> None:
        """Drop what is below `level` from now on."""
        self._level = LEVELS[level]

    def statistics(self) -> LogStatistics:
        """Counts so far."""
        return LogStatistics(self._sink.written, self._sink.lost)

    def run(self, descriptor: int) -> None:
        """Write lines until `stop`; the writer thread's whole life."""
        while (line := self._sink.lines.get()) is not None:
            # Reported only where a line got through: a report that fails must not cause the next.
            if self._sink.write(descriptor, line) and (lost := self._sink.newly_lost()):
                self.logger.warning("log lines lost", lines=lost)
            if self._stopped and self._sink.lines.empty():
                return

    def stop(self) -> None:
        """Let `run` return once it has written what is queued."""
        self._stopped = True
        with contextlib.suppress(queue.Full):
            self._sink.lines.put_nowait(None)

    def _drop_below_level(
        self, logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if LEVELS[event["level"]] < self._level:
            raise structlog.DropEvent
        return event


class _Sink:
    """The end of structlog's chain: rendered lines, queued or counted as lost.

    Written straight to the descriptor. A buffered stream whose lock the writer thread holds when
    the process ends is a fatal error of the interpreter.
    """

    def __init__(self) -> None:
        self.lines: queue.Queue[bytes | None] = queue.Queue(QUEUE_LINES)
        self.written = self.lost = self._reported = 0

    def msg(self, line: bytes) -> None:
        try:
            self.lines.put_nowait(line)
        except queue.Full:
            self.lost += 1

    debug = info = warning = error = critical = msg

    def write(self, descriptor: int, line: bytes) -> bool:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            # The reader has gone, or the disk is full: a later line may get through.
            self.lost += 1
            return False
        self.written += 1
        return True

    def newly_lost(self) -> int:
        new, self._reported = self.lost - self._reported, self.lost
        return new


class _Foreign(logging.Handler):
    """Other libraries' records, asyncio's above all, as lines of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        # Levels in between count as the one below; the text has the traceback, if there is one.
        level = max(known for known in LEVELS.values() if known <= max(record.levelno, DEBUG))
        self._log.logger.log(level, self.format(record), logger=record.name)


@contextlib.contextmanager
def open_log(
    settings: Settings, environment: Mapping[str, str], descriptor: int = 1
) -> Iterator[Log]:
    """A log on a descriptor while the block runs; at its end, a second to write what is queued."""
    log = Log(_renderer(settings, environment, descriptor), settings.level)
    writer = threading.Thread(target=log.run, args=(descriptor,), name="eplbd-log", daemon=True)
    writer.start()
    foreign, root = _Foreign(log), logging.getLogger()
    root.addHandler(foreign)
    try:
        yield log
    finally:
        root.removeHandler(foreign)
        log.stop()
        writer.join(FLUSH_S)


def _renderer(settings: Settings, environment: Mapping[str, str], descriptor: int) -> Processor:
    terminal = os.isatty(descriptor)
    if settings.format == "console" or (settings.format == "auto" and terminal):
        console = structlog.dev.ConsoleRenderer(colors=terminal)

        def as_text(logger: object, method: str, event: MutableMapping[str, Any]) -> bytes:
            return f"{console(logger, method, event)}\n".encode(errors="replace")

        return as_text

    encode = msgspec.json.Encoder(enc_hook=repr).encode
    journal = _is_journal(descriptor, environment)

    def as_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> bytes:
        prefix = b"<%d>" % PRIORITY[event["level"]] if journal else b""
        return prefix + encode(event) + b"\n"

    return cast("Processor", as_json)


def _is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether the descriptor is the one that systemd named; a child inherits the variable alone."""
    status = os.fstat(descriptor)
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
