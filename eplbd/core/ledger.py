"""The leader's books of heat: reports of all ranks become aligned samples of whole steps.

Owns the judgement of a report, the translation from slots to experts by the placement that it was
measured under, the windows per phase, and the audit of the shared clock. It must not know policies,
nor what is done about a mismatch.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplbd.core.assembly import Assembly, Part, Step
from eplbd.core.cluster import NodeHeat
from eplbd.core.heat import PHASES, Heat
from eplbd.core.messages import Counts, Dispatch, HeatReport
from eplbd.core.placement import Placement, validate
from eplbd.core.report import (
    INT32_MAX,
    LAG_STEPS,
    PHASE_BITS,
    check,
    greatest,
    of_rank,
    refusal,
)
from eplbd.core.topology import Topology
from eplbd.errors import LocalProtocolError

_KEPT_PLACEMENTS = 4
"""Reports lag behind the placement in force by less than one epoch; four leave room for aborts."""

_REACH_WINDOWS = 8
"""Windows of `lag_steps` by which a report may leave the newest forward. One rank that is wrong
about the clock must not take the window along, nor a daemon that slept lose the group for good: a
forward further away is believed once every rank is there."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Two ranks' accounts of one forward contradict each other."""

    forward: int
    detail: str


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """Counts since the ledger began.

    reports: taken, in whole or in part. steps: complete ones. dummy_steps: complete, but without
    tokens. mismatches: complete, but contradictory. repeated_steps: of one rank, reported again.
    gaps: places where a rank's reports skip forwards; missing_steps: how many they skip.
    late_steps: of one rank, for forwards that had left the window. lost_steps: forwards that left
    it incomplete. unknown_epoch: reports measured under a placement that the ledger does not have.
    astray: reports refused because their forward is nowhere near the other ranks'.
    """

    reports: int
    steps: int
    dummy_steps: int
    mismatches: int
    repeated_steps: int
    gaps: int
    missing_steps: int
    late_steps: int
    lost_steps: int
    unknown_epoch: int
    astray: int


class _Translation:
    """From the slots of one placement to experts, for counts of one kind."""

    def __init__(self, placement: Placement, *, sent: bool) -> None:
        layers, ranks, _ = placement.slots.shape
        experts = placement.experts
        keys = placement.slots + np.arange(layers)[:, None, None] * experts
        if sent:
            flat = keys.ravel()
            self.order = np.argsort(flat, kind="stable")
            self.starts = np.searchsorted(flat[self.order], np.arange(layers * experts))
        else:
            self.where = np.ascontiguousarray(keys.transpose(1, 0, 2)).reshape(ranks, -1)


class Ledger:
    """Heat of one group under one leader.

    window_steps: steps kept per phase. counts: what reports count, tokens received by the rank's
    own slots or sent to all slots. dispatch: how the engine brings tokens to experts; where it is
    replicated every rank routes all tokens, so of counts sent only rank 0's are summed. lag_steps:
    forwards by which the reports of two ranks may be apart, and most steps of one report.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        layers: int,
        experts: int,
        window_steps: int,
        counts: Counts = Counts.RECEIVED,
        dispatch: Dispatch = Dispatch.ALL_TO_ALL,
        lag_steps: int = LAG_STEPS,
    ) -> None:
        if min(window_steps, lag_steps) < 1:
            raise LocalProtocolError(
                f"ledger: window_steps {window_steps}, lag_steps {lag_steps}, expected at least 1"
            )
        self._topology = topology
        self._layers, self._experts = layers, experts
        self._sent = counts is Counts.SENT
        self._replicated = dispatch is Dispatch.REPLICATED
        columns = topology.slots if self._sent else topology.slots_per_rank
        self._columns = columns
        self._assembly = Assembly(topology.ranks, layers, experts, lag_steps)
        self._translations: dict[int, _Translation] = {}
        self._windows: dict[str, deque[Step]] = {
            phase: deque(maxlen=window_steps) for phase in PHASES
        }
        self._next = [-1] * topology.ranks
        self._far: dict[int, int] = {}
        """First forward of the newest report of each rank that is out of reach."""
        self._found: list[Mismatch] = []
        self._reports = self._complete = self._dummies = self._mismatches = 0
        self._gaps = self._missing = self._unknown = self._astray = 0
        self.recording = False
        """Whether to keep complete steps, dummies included, for `recorded`."""
        self._recorded: list[Step] = []

    def placed(self, epoch: int, placement: Placement) -> None:
        """Learn what the slots hold under `epoch`; keeps the newest few epochs.

        May be called before the epoch is in force: reports of its first forwards can arrive before
        its last rank has said that it committed. Raises PlacementError for one that cannot be
        served.
        """
        validate(
            placement.slots,
            experts=self._experts,
            topology=self._topology,
            layers=self._layers,
            allow_duplicates=True,
        )
        self._translations.pop(epoch, None)
        self._translations[epoch] = _Translation(placement, sent=self._sent)
        while len(self._translations) > _KEPT_PLACEMENTS:
            del self._translations[next(iter(self._translations))]

    def report(self, rank: int, report: HeatReport) -> None:
        """Take one rank's report, as `report_node` takes one of several ranks."""
        self.report_node(of_rank(rank, report))

    def report_node(self, report: NodeHeat) -> None:
        """Take what several ranks report of the same forwards.

        A report under an unknown epoch is counted and dropped; a step that a rank reported before
        is counted and passed over. Raises RemoteProtocolError, naming ranks and field, for what no
        correct rank sends; nothing of that report was taken.
        """
        check(
            report,
            ranks=self._topology.ranks,
            layers=self._layers,
            columns=self._columns,
            most_steps=self._assembly.steps,
        )
        self._check_reach(report)
        ranks, steps = report.ranks.tolist(), report.counts.shape[1]
        translation = self._translations.get(report.epoch)
        if translation is None:
            self._unknown += len(ranks)
        else:
            for step in self._assembly.add(self._translate(report, translation)):
                self._close(step)
            self._reports += len(ranks)
        first = report.first_forward
        for rank in ranks:
            expected = self._next[rank]
            if 0 <= expected < first:
                self._gaps += 1
                self._missing += first - expected
            self._next[rank] = max(expected, first + steps)

    def heat(self, phase: str = "all") -> Heat:
        """The newest complete steps of `phase`, oldest first; none at all is an empty window."""
        steps = np.empty((len(self._window(phase)), self._layers, self._experts), dtype=np.int32)
        for i, step in enumerate(self._window(phase)):
            steps[i] = step.heat
        steps.setflags(write=False)
        return Heat(steps, phase)

    def newest(self, phase: str = "all") -> int:
        """The newest forward in the window of `phase`; -1 while it is empty."""
        return max((step.forward for step in self._windows[phase]), default=-1)

    def since(self, forward: int, phase: str = "all") -> list[Step]:
        """The steps of the window that are newer than `forward`, oldest first."""
        return [step for step in self._window(phase) if step.forward > forward]

    def recorded(self) -> tuple[Step, ...]:
        """Complete steps since the last call, in the order in which they became complete."""
        steps, self._recorded = tuple(self._recorded), []
        return steps

    def under(self, epoch: int, phase: str = "all") -> int:
        """How many steps `loads` would have."""
        return sum(step.epoch == epoch for step in self._windows[phase])

    def loads(self, epoch: int, phase: str = "all") -> NDArray[np.int64]:
        """`[steps, layers, ranks]` int64 tokens that ranks processed in steps run under `epoch`.

        `placement.par` of it is the realised PAR per step and layer. Oldest first, read-only.
        """
        under = [step.load for step in self._window(phase) if step.epoch == epoch]
        loads = np.empty((len(under), self._layers, self._topology.ranks), dtype=np.int64)
        for i, load in enumerate(under):
            loads[i] = load.T
        loads.setflags(write=False)
        return loads

    def audit(self) -> list[Mismatch]:
        """Contradictions found since the last call, oldest forward first; each is returned once.

        With replicated dispatch all ranks must have routed the same number of assignments, with
        all-to-all their sum counts; either must equal what the slots processed, and all ranks must
        have run a forward under one epoch.
        """
        found, self._found = sorted(self._found, key=lambda m: m.forward), []
        return found

    def statistics(self) -> LedgerStatistics:
        """Figures so far."""
        return LedgerStatistics(
            reports=self._reports,
            steps=self._complete,
            dummy_steps=self._dummies,
            mismatches=self._mismatches,
            repeated_steps=self._assembly.repeated,
            gaps=self._gaps,
            missing_steps=self._missing,
            late_steps=self._assembly.late,
            lost_steps=self._assembly.lost,
            unknown_epoch=self._unknown,
            astray=self._astray,
        )

    # --- within ---------------------------------------------------------------------------------

    def _window(self, phase: str) -> list[Step]:
        if phase not in PHASES:
            raise LocalProtocolError(f"ledger: no window for phase {phase!r}, expected {PHASES}")
        return sorted(self._windows[phase], key=lambda step: step.forward)

    def _check_reach(self, report: NodeHeat) -> None:
        """Raise RemoteProtocolError for a forward that is out of reach, unless all ranks are."""
        first, ranks = report.first_forward, report.ranks.tolist()
        head, reach = self._assembly.head, _REACH_WINDOWS * self._assembly.steps
        if head < 0 or abs(first - head) <= reach:
            for rank in ranks:
                self._far.pop(rank, None)
            return
        self._far.update(dict.fromkeys(ranks, first))
        start = min(self._far.values())
        if (
            len(self._far) < self._topology.ranks
            or max(self._far.values()) - start >= self._assembly.steps
        ):
            self._astray += len(ranks)
            expected = f"expected at most {reach} from {head}, the newest of the group"
            raise refusal(report, "first_forward", f"is {first}, {expected}")
        self._assembly.restart(start)
        self._next = [min(forward, start) for forward in self._next]
        self._far.clear()

    def _translate(self, report: NodeHeat, translation: _Translation) -> Part:
        counts, tokens = report.counts, report.tokens.astype(np.int64)
        if self._replicated:
            tokens[report.ranks != 0] = 0
        heat: NDArray[np.integer]
        load: NDArray[np.integer]
        if self._sent:
            heat, load = self._translate_sent(report, translation)
            where = None
        else:
            # Both from one copy, no wider than a rank's sums need.
            fits = self._columns * greatest(counts.dtype) <= INT32_MAX
            wide: NDArray[np.integer] = counts.astype(np.int32 if fits else np.int64)
            heat = wide.reshape(*wide.shape[:2], -1)
            load = np.einsum("rslc->rsl", wide)
            where = translation.where[report.ranks]
        return Part(
            ranks=report.ranks,
            first_forward=report.first_forward,
            epoch=report.epoch,
            phase=PHASE_BITS[report.phase],
            heat=heat,
            where=where,
            load=load,
            routed=report.routed.astype(np.int64, copy=False),
            tokens=tokens,
            dummy=report.dummy,
        )

    def _translate_sent(
        self, report: NodeHeat, translation: _Translation
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        counts = report.counts.astype(np.int32, copy=False)
        if self._replicated:
            counts = np.where((report.ranks == 0)[:, None, None, None], counts, np.int32(0))
        sources, steps = counts.shape[:2]
        by_rank = counts.reshape(sources, steps, self._layers, self._topology.ranks, -1)
        load = by_rank.sum(axis=4, dtype=np.int64).swapaxes(2, 3)
        ordered = counts.reshape(sources, steps, -1)[:, :, translation.order]
        heat = np.add.reduceat(ordered, translation.starts, axis=2)
        heat[report.dummy] = 0
        return heat, load

    def _close(self, step: Step) -> None:
        """Audit a complete step and file it."""
        self._complete += 1
        detail = self._contradiction(step)
        if detail:
            self._mismatches += 1
            self._found.append(Mismatch(step.forward, detail))
            return
        if self.recording:
            self._recorded.append(step)
        if step.dummy:
            self._dummies += 1
        else:
            self._windows["all"].append(step)
            for phase in ("prefill", "decode"):
                if step.phase == PHASE_BITS[phase]:
                    self._windows[phase].append(step)

    def _contradiction(self, step: Step) -> str:
        if step.torn:
            return "ranks ran it under different epochs"
        processed = int(step.load.sum(dtype=np.int64))
        routed = int(step.routed[0]) if self._replicated else int(step.routed.sum())
        if self._replicated and (step.routed != routed).any():
            other = int(np.flatnonzero(step.routed != routed)[0])
            return (
                f"rank 0 routed {routed} assignments, rank {other} {int(step.routed[other])}; "
                "under replicated dispatch all ranks route the same"
            )
        if processed != routed:
            return f"ranks routed {routed} assignments, their slots processed {processed}"
        return ""
