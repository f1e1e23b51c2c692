"""`eplbd demo` from start to verdict: a real daemon, real ranks, what they do and what came of it.

Owns the order of events and every deadline, hence that a run always ends. It must not know torch
(only workers do), nor how anything is shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty
from signal import Signals
from time import monotonic

import msgspec

from eplbd.demo import reports as r
from eplbd.demo.processes import DAEMON, Ended, Event, Interrupted, Logged, Processes, Reported
from eplbd.demo.record import Journal, LogLine, Record
from eplbd.demo.settings import EXPERTS_PER_RANK, Options, Plan, socket_of
from eplbd.demo.verdict import Circumstances, Figures, figures_of, judge
from eplbd.demo.view import Snapshot, View

START_S = 90.0
"""Imports of torch on every rank at once, and the group's meeting."""

STALL_S = 20.0
"""Without a step for this long something hangs; a step takes a tenth of a second."""

STOP_S = 10.0
"""For the daemon to close an epoch; it gives itself half of that."""

LEAVE_S = 30.0
"""For the ranks to agree on their last step and take it: on a very busy machine that takes long."""

GRACE_S = 1.0
"""After a fault: its consequences arrive in no particular order."""

REFRESH_S = 0.25

BREAK_RANK = 1
SHOWN_LINES = 8
_LINE = msgspec.json.Decoder(LogLine)


class Run:
    """One run: `play` it once, then ask for `figures`."""

    def __init__(
        self, options: Options, plan: Plan, processes: Processes, view: View, folder: Path
    ) -> None:
        self._options, self._plan, self._folder = options, plan, folder
        self._processes, self._view = processes, view
        self._ranks = range(plan.shape.ranks)
        self._record = Record(plan.shape.ranks)
        self._journal = Journal()
        self._log: deque[LogLine] = deque(maxlen=SHOWN_LINES)
        self._phase = "starting"
        self._began = self._served_at = self._served_until = self._last_step = monotonic()
        self._shown = 0.0
        self._attached: set[int] = set()
        self._failed: dict[int, r.Failed] = {}
        self._ended: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._lost: list[int] = []
        """Ranks that ended before their time, in the order in which that was noticed."""
        self._faults: list[str] = []
        self._daemon_said = ""
        self._signals: list[str] = []

    # --- the course of a run --------------------------------------------------------------------

    def play(self) -> None:
        """Start everything, let it serve, stop everything in order."""
        self._processes.start_daemon(self._options.policy)
        for rank in self._ranks:
            self._processes.start_worker(self._assignment(rank))
        started = self._wait(lambda: len(self._attached) == len(self._ranks), START_S)
        self._served_at = self._served_until = self._last_step = monotonic()
        if started:
            self._serve()
            self._served_until = monotonic()
            self._leave()
        elif not self._cut():
            self._faults.append(f"the ranks did not start within {START_S:.0f} s")
        self._explain()
        self._phase = "done"
        self._refresh()

    @property
    def interrupts(self) -> int:
        """How often somebody has asked for the end."""
        return len(self._signals)

    def figures(self) -> Figures:
        """What came of it, with the verdict."""
        options, shape = self._options, self._plan.shape
        around = Circumstances(
            dispatch=options.dispatch.value,
            policy=options.policy,
            layers=shape.layers,
            experts=shape.experts,
            seed=options.seed,
            trace=str(options.trace) if options.trace else None,
            seconds=round(self._served_until - self._served_at, 1),
            setup_s=round(self._served_at - self._began, 1),
            faults=(*self._faults, *(f"interrupted by {name}" for name in self._signals[:1])),
        )
        return judge(figures_of(self._record, self._journal, around, options.steps))

    def _assignment(self, rank: int) -> r.Assignment:
        options, plan = self._options, self._plan
        return r.Assignment(
            rank=rank,
            shape=plan.shape,
            dispatch=options.dispatch,
            socket=socket_of(self._folder),
            seed=options.seed,
            topic_steps=plan.topic_steps,
            trace=str(options.trace) if options.trace else "",
            experts_per_rank=EXPERTS_PER_RANK,
        )

    def _serve(self) -> None:
        self._phase = "serving"
        if self._options.broken:
            self._serve_until(0.5)
            self._processes.tell(BREAK_RANK, r.Break())
        self._serve_until(1.0)

    def _serve_until(self, share: float) -> None:
        while self._share < share and not self._cut():
            left_s = self._last_step + STALL_S - monotonic()
            if left_s <= 0:
                self._faults.append(f"no step for {STALL_S:.0f} s")
                return
            self._wait(lambda: self._share >= share, left_s)

    @property
    def _share(self) -> float:
        """Of the run that is over."""
        if self._options.steps is not None:
            return len(self._record.steps) / self._options.steps
        return (monotonic() - self._served_at) / self._options.seconds

    def _leave(self) -> None:
        """The daemon first, while ranks still serve: an epoch under way ends as it should."""
        if self._lost or self._faults:
            return
        self._phase = "stopping"
        if DAEMON not in self._ended:
            self._leaving.add(DAEMON)
            self._processes.stop_daemon()
            if not self._wait(lambda: DAEMON in self._ended, STOP_S, self._hurried):
                self._faults.append(f"the daemon did not stop within {STOP_S:.0f} s")
        self._leaving.update(self._ranks)
        self._processes.tell(0, r.Stop())
        if not self._wait(self._all_ended, LEAVE_S, self._hurried):
            self._faults.append(f"the ranks did not leave within {LEAVE_S:.0f} s")

    # --- events ---------------------------------------------------------------------------------

    def _cut(self) -> bool:
        """Whether there is no point in going on."""
        stillborn = DAEMON in self._ended and not self._journal.ready
        return bool(self._lost or self.interrupts or stillborn)

    def _hurried(self) -> bool:
        """Whether there is no point, or no time, in leaving in order."""
        return bool(self._lost) or self.interrupts > 1

    def _all_ended(self) -> bool:
        return self._ended.keys() >= {*self._ranks}

    def _wait(
        self,
        done: Callable[[], bool],
        limit_s: float,
        cut: Callable[[], bool] | None = None,
    ) -> bool:
        """Take events until `done`; false after `limit_s`, or when the run is `cut` short."""
        deadline = monotonic() + limit_s
        while not done():
            left_s = deadline - monotonic()
            if left_s <= 0 or (cut or self._cut)():
                return False
            with suppress(Empty):
                self._take(self._processes.events.get(timeout=min(REFRESH_S, left_s)))
            if monotonic() >= self._shown + REFRESH_S:
                self._refresh()
        return True

    def _take(self, event: Event) -> None:
        match event:
            case Reported(report):
                self._report(report)
            case Logged(line):
                self._daemon_line(line)
            case Ended(who, status):
                self._end(who, status)
            case Interrupted(number):
                self._signals.append(Signals(number).name)

    def _report(self, report: r.Report) -> None:
        match report:
            case r.Serving(port):
                for rank in self._ranks:
                    self._processes.tell(rank, r.Meet(port if rank else 0))
            case r.Attached(rank):
                self._attached.add(rank)
            case r.Steps():
                self._last_step = monotonic()
                self._record.add(report)
            case r.Broke():
                self._record.broke.append(report)
            case r.Failed(rank):
                self._failed[rank] = report
            case r.Left():
                pass

    def _daemon_line(self, line: bytes) -> None:
        if not line.startswith(b"{"):
            said = line.decode(errors="replace").strip().removeprefix("Error: ")
            self._daemon_said = said or self._daemon_said
            return
        known = _LINE.decode(line)
        self._journal.take(known)
        self._log.append(known)
        self._view.log(known)

    def _end(self, who: int, status: int) -> None:
        self._ended[who] = status
        if who in self._leaving and status == 0:
            return
        if who != DAEMON:
            self._lost.append(who)
        elif self._journal.ready:
            self._faults.append(
                f"the daemon {_ended_how(status)} after step {len(self._record.steps)}; the ranks "
                "serve on with the map in force"
            )
        else:
            self._faults.append(f"the daemon did not start: {self._daemon_said}")

    def _explain(self) -> None:
        """Of ranks that were lost, say which one took the others along."""
        if not self._lost:
            return
        self._wait(self._all_ended, GRACE_S, lambda: self.interrupts > 1)
        self._faults.append(self._reason(min(self._lost, key=self._innocence)))

    def _innocence(self, rank: int) -> int:
        """A rank that says why, or cannot say anything, is the cause; torch errors follow."""
        failed = self._failed.get(rank)
        return 0 if failed is None or failed.expected else 1

    def _reason(self, rank: int) -> str:
        failed = self._failed.get(rank)
        how = _ended_how(self._ended[rank])
        said = failed.fault if failed is not None else self._processes.last_words(rank)
        return f"rank {rank} {how}{f': {said}' if said else ''}"

    def _refresh(self) -> None:
        self._shown = monotonic()
        self._view.refresh(
            Snapshot(
                phase=self._phase,
                title=self._plan.title,
                dispatch=self._options.dispatch.value,
                policy=self._options.policy,
                elapsed_s=monotonic() - self._served_at if self._attached else 0.0,
                share=min(1.0, self._share) if self._record.steps else 0.0,
                record=self._record,
                journal=self._journal,
                log=tuple(self._log),
                notes=tuple(self._faults),
            )
        )


def _ended_how(status: int) -> str:
    return f"was ended by {Signals(-status).name}" if status < 0 else f"ended with status {status}"
