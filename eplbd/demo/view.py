"""What a run looks like while it lasts, as lines: for a pipe, a journal, a plain terminal.

Owns `View`, what a view is shown, the words for the daemon's log lines, and the plain view. The
table for a terminal is `table`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from eplbd.demo.record import STOPPED, Floats, Journal, LogLine, Record, Step

NOW_STEPS = 16
"""Steps that `now` is the mean of: about one and a half seconds."""

PLAIN_S = 5.0
"""Between two lines about the steps."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The run at one moment. share: of the run that is over, 0 to 1. notes: what went wrong."""

    phase: str
    title: str
    dispatch: str
    policy: str
    elapsed_s: float
    share: float
    record: Record
    journal: Journal
    log: Sequence[LogLine]
    notes: Sequence[str]


class View(Protocol):
    """Shows a run to somebody."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def refresh(self, now: Snapshot) -> None:
        """Show this moment; called some times a second."""

    def log(self, line: LogLine) -> None:
        """Take notice of a line of the daemon's."""

    def close(self, verdict: Sequence[str]) -> None:
        """Show what came of it."""


class Plain:
    """Line after line, through `write`, which adds the newline."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._next_s = 0.0
        self._phase = ""
        self._noted = self._told = 0

    def __enter__(self) -> Self:
        """See `View`."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `View`."""

    def refresh(self, now: Snapshot) -> None:
        """See `View`."""
        if now.phase != self._phase:
            if not self._phase:
                self._write(f"demo: {now.title}; {now.dispatch}, policy {now.policy}")
            self._phase = now.phase
            self._write(f"demo: {now.phase}")
        for note in now.notes[self._noted :]:
            self._write(f"demo: {note}")
        self._noted = len(now.notes)
        if len(now.record.steps) > self._told and now.elapsed_s >= self._next_s:
            self._told = len(now.record.steps)
            self._next_s = now.elapsed_s + PLAIN_S
            self._write(f"demo: {progress(now.record.steps)}")

    def log(self, line: LogLine) -> None:
        """See `View`."""
        self._write(f"eplbd: {words(line)}")

    def close(self, verdict: Sequence[str]) -> None:
        """See `View`."""
        for sentence in verdict:
            self._write(f"demo: {sentence}")


def recent(steps: Sequence[Step], name: str) -> Floats:
    """Mean of a figure over the last `NOW_STEPS` steps, `[layers]` or `[ranks]`."""
    mean: Floats = np.mean([getattr(step, name) for step in steps[-NOW_STEPS:]], axis=0)
    return mean


def progress(steps: Sequence[Step]) -> str:
    """One line about the last steps."""
    live, twin = (float(recent(steps, name).mean()) for name in ("live_par", "twin_par"))
    forward_ms = float(recent(steps, "live_s").mean()) * 1e3
    return (
        f"step {len(steps)}, topic {steps[-1].topic}, PAR {live:.2f} ({twin:.2f} without moves), "
        f"forward {forward_ms:.0f} ms"
    )


def words(line: LogLine) -> str:
    """A line of the daemon's log on one line of eighty columns; what has no room is left out."""
    match line.event:
        case "epoch ended" if line.outcome == "settled":
            return (
                f"epoch {line.epoch} settled: {line.moves} moves, {line.rounds} rounds, "
                f"staged in {line.stage_s:.2f} s, flip at {line.at}"
            )
        case "epoch ended" if line.reason == STOPPED:
            return f"epoch {line.epoch} given up: {line.reason}"
        case "epoch ended":
            return f"epoch {line.epoch} {line.outcome}: {line.reason}"
        case "cycle ended" if line.outcome == "applied":
            found = f", found {line.par_realised:.2f}" if line.par_realised else ""
            return (
                f"rebalance applied: {line.moves} moves, PAR {line.par_before:.2f}, "
                f"predicted {line.par_predicted:.2f}{found}"
            )
        case "cycle ended":
            return f"rebalance {line.outcome}: {line.reason}"
        case _:
            return f"{line.event}: {line.reason}" if line.reason else line.event
