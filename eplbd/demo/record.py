"""What has happened so far in a run: steps, as the ranks reported them, and the daemon's log.

Owns the joining of the ranks' reports into steps, the load figures of each step, and the count of
epochs. It must not know processes or how anything is shown, nor judge.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import par
from eplbd.demo.reports import Broke, Steps

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

STOPPED = "the daemon stops"
"""Reason of an epoch that was given up because the run was over: nothing went wrong with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step of all ranks.

    identical, staging, committed: `[ranks]`. live_s, twin_s, hook_s: `[ranks]` seconds. live_par,
    twin_par: `[layers]`, hottest rank over mean; the twin's is what the same tokens would have
    loaded the ranks with had no expert moved.
    """

    topic: str
    identical: Flags
    staging: Flags
    committed: Flags
    live_s: Floats
    twin_s: Floats
    hook_s: Floats
    live_par: Floats
    twin_par: Floats


class Record:
    """The steps of one run. `steps` are complete and in order."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.steps: list[Step] = []
        self.broke: list[Broke] = []
        self._parts: dict[int, dict[int, tuple[Steps, int]]] = {}

    def add(self, report: Steps) -> None:
        """Take one rank's report; whatever it completes is appended to `steps`."""
        for index in range(len(report.identical)):
            self._parts.setdefault(report.first + index, {})[report.rank] = report, index
        while len(self._parts.get(len(self.steps), ())) == self.ranks:
            self.steps.append(_joined(self._parts.pop(len(self.steps))))


def _joined(parts: dict[int, tuple[Steps, int]]) -> Step:
    ordered = [parts[rank] for rank in sorted(parts)]

    def flags(name: str) -> Flags:
        return np.array([getattr(report, name)[i] for report, i in ordered], dtype=np.bool_)

    def floats(name: str) -> Floats:
        return np.array([getattr(report, name)[i] for report, i in ordered], dtype=np.float64)

    first, at = ordered[0]
    return Step(
        topic=first.topics[at],
        identical=flags("identical"),
        staging=flags("staging"),
        committed=flags("committed"),
        live_s=floats("live_s"),
        twin_s=floats("twin_s"),
        hook_s=floats("hook_s"),
        live_par=par(floats("live_load").T),
        twin_par=par(floats("twin_load").T),
    )


class LogLine(msgspec.Struct, frozen=True):
    """What the run reads of a line of the daemon's log; `text` has the rest."""

    event: str
    level: str = "info"
    outcome: str = ""
    reason: str = ""
    epoch: int = 0
    moves: int = 0
    bytes: int = 0
    rounds: int = 0
    at: int = 0
    stage_s: float = 0.0
    commit_s: float = 0.0
    stall_s: float = 0.0
    par_before: float = 0.0
    par_predicted: float = 0.0
    par_realised: float = 0.0


@dataclass(slots=True)
class Journal:
    """What the daemon has said it did."""

    settled: int = 0
    aborted: int = 0
    cut: int = 0
    """Epochs given up because the run was over."""
    moves: int = 0
    bytes: int = 0
    stall_s: float = 0.0
    """Longest wait of a forward for a decision."""
    cycles: Counter[str] = field(default_factory=Counter)
    """Rebalances by outcome."""
    abort_reasons: Counter[str] = field(default_factory=Counter)
    refusal: str = ""
    """Why the last rebalance that moved nothing did not."""
    frozen: str = ""
    ready: bool = False

    def take(self, line: LogLine) -> None:
        """Count a line."""
        match line.event:
            case "epoch ended":
                self._epoch(line)
            case "cycle ended":
                self.cycles[line.outcome] += 1
                if line.outcome not in ("applied", "partly"):
                    self.refusal = line.reason
            case "placement frozen":
                self.frozen = line.reason
            case "group ready":
                self.ready = True

    def _epoch(self, line: LogLine) -> None:
        self.stall_s = max(self.stall_s, line.stall_s)
        if line.outcome == "settled":
            self.settled += 1
            self.moves += line.moves
            self.bytes += line.bytes
        elif line.reason == STOPPED:
            self.cut += 1
        else:
            self.aborted += 1
            self.abort_reasons[line.reason] += 1
