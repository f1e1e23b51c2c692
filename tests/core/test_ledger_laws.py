"""The ledger against a plain account of what every rank did in every forward."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core.ledger import Ledger
from eplbd.core.messages import Counts, Dispatch, HeatReport
from eplbd.core.placement import Placement
from eplbd.core.report import of_node
from tests.core.arrangements import Group, groups, shuffled

PHASES = {"prefill": {1}, "decode": {2}, "mixed": {1, 2}, "all": {1, 2}}


@dataclass(frozen=True)
class Run:
    """What really happened: tokens from rank to slot in every forward, `[forwards, R, L, R, S]`."""

    group: Group
    counts: Counts
    dispatch: Dispatch
    placements: list[Placement]
    """By epoch."""
    flips: list[int]
    """First forward of each epoch."""
    traffic: NDArray[np.int64]
    phase: list[list[str]]
    """[forward][rank]."""
    dummy: NDArray[np.bool_]

    def epoch(self, forward: int) -> int:
        return max(e for e, first in enumerate(self.flips) if first <= forward)

    def report(self, rank: int, first: int, last: int) -> HeatReport:
        """Forwards first..last - 1, all of one epoch and phase."""
        at = slice(first, last)
        if self.counts is Counts.SENT:
            counts = self.traffic[at, rank].reshape(last - first, self.group.layers, -1)
        elif self.dispatch is Dispatch.REPLICATED:
            counts = self.traffic[at, 0, :, rank]
        else:
            counts = self.traffic[at, :, :, rank].sum(axis=1)
        return HeatReport(
            epoch=self.epoch(first),
            first_forward=first,
            phase=self.phase[first][rank],
            counts=counts.astype(np.int32),
            routed=self.traffic[at, rank].sum(axis=(1, 2, 3)),
            tokens=np.zeros(last - first, np.int32),
            dummy=self.dummy[at, rank],
        )

    def once(self, forward: int) -> NDArray[np.int64]:
        """`[R, L, R, S]`, with replicated traffic counted once."""
        senders = 1 if self.dispatch is Dispatch.REPLICATED else self.group.topology.ranks
        return self.traffic[forward, :senders]

    def heat(self, forward: int) -> NDArray[np.int64]:
        group, placement = self.group, self.placements[self.epoch(forward)]
        heat = np.zeros((group.layers, group.experts), dtype=np.int64)
        for rank, traffic in enumerate(self.once(forward)):
            if self.counts is Counts.SENT and self.dummy[forward, rank]:
                continue
            for layer, to, slot in np.ndindex(placement.slots.shape):
                heat[layer, placement.slots[layer, to, slot]] += traffic[layer, to, slot]
        return heat

    def load(self, forward: int) -> NDArray[np.int64]:
        load: NDArray[np.int64] = self.once(forward).sum(axis=(0, 3))
        return load

    def is_of(self, forward: int, phase: str) -> bool:
        if self.dummy[forward].all():
            return False
        own = [PHASES[name] for name in self.phase[forward]]
        seen = set().union(
            *(bits for bits, idle in zip(own, self.dummy[forward], strict=True) if not idle)
        )
        return phase == "all" or seen == PHASES[phase]

    def ledger(self, **options: int) -> Ledger:
        ledger = Ledger(
            self.group.topology,
            layers=self.group.layers,
            experts=self.group.experts,
            counts=self.counts,
            dispatch=self.dispatch,
            **({"window_steps": 1000} | options),
        )
        for epoch, placement in enumerate(self.placements):
            ledger.placed(epoch, placement)
        return ledger


@st.composite
def runs(draw: st.DrawFn, forwards: int = 12) -> Run:
    group = draw(groups(max_ranks=4, max_slots=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    epochs = draw(st.integers(1, 3))
    ranks, per_rank = group.topology.ranks, group.topology.slots_per_rank
    dispatch = draw(st.sampled_from(Dispatch))
    traffic = rng.integers(0, 50, (forwards, ranks, group.layers, ranks, per_rank))
    if dispatch is Dispatch.REPLICATED:
        traffic[:] = traffic[:, :1]
    dummy = rng.random((forwards, ranks)) < draw(st.sampled_from([0, 0.6]))
    dummy[0] = draw(st.booleans())
    phase = st.sampled_from([*PHASES])
    if draw(st.booleans()):
        phases = [[name] * ranks for name in draw(st.lists(phase, min_size=12, max_size=12))]
    else:
        phases = [[draw(phase) for _ in range(ranks)] for _ in range(forwards)]
    return Run(
        group,
        draw(st.sampled_from(Counts)),
        dispatch,
        [shuffled(group, rng, 100) for _ in range(epochs)],
        [0, *sorted(rng.integers(1, forwards, epochs - 1).tolist())],
        traffic,
        phases,
        dummy,
    )


def cut(draw: st.DrawFn, run: Run, rank: int) -> list[tuple[int, int]]:
    """A rank's forwards as reports would have them: of one epoch and phase, else cut at random."""
    edges = [0]
    for forward in range(1, len(run.traffic)):
        changes = run.epoch(forward) != run.epoch(forward - 1)
        changes |= run.phase[forward][rank] != run.phase[forward - 1][rank]
        if changes or draw(st.booleans()):
            edges.append(forward)
    return list(zip(edges, [*edges[1:], len(run.traffic)], strict=True))


def assert_books_agree(run: Run, ledger: Ledger, complete: list[int]) -> None:
    for phase in ("all", "prefill", "decode"):
        chosen = [forward for forward in complete if run.is_of(forward, phase)]
        heat = ledger.heat(phase)
        assert heat.phase == phase
        assert heat.steps.dtype == np.int32
        assert not heat.steps.flags.writeable
        assert heat.steps.tolist() == [run.heat(forward).tolist() for forward in chosen]
        assert (
            heat.total.tolist()
            == sum((run.heat(forward) for forward in chosen), np.zeros_like(run.heat(0))).tolist()
        )
        for epoch in range(len(run.placements)):
            loads = ledger.loads(epoch, phase)
            under = [forward for forward in chosen if run.epoch(forward) == epoch]
            assert loads.shape == (len(under), run.group.layers, run.group.topology.ranks)
            assert loads.tolist() == [run.load(forward).tolist() for forward in under]


@given(st.data())
def test_nothing_is_lost_repeated_or_misplaced(data: st.DataObject) -> None:
    """Reports of all ranks in any order between them, some twice: every token is booked once."""
    run = data.draw(runs())
    ranks = run.group.topology.ranks
    ledger = run.ledger()
    todo = {rank: data.draw(st.composite(cut)(run, rank)) for rank in range(ranks)}
    given_out = repeated = 0
    said: list[tuple[int, int, int]] = []
    while todo:
        rank = data.draw(st.sampled_from(sorted(todo)))
        first, last = todo[rank].pop(0)
        if not todo[rank]:
            del todo[rank]
        said.append((rank, first, last))
        ledger.report(rank, run.report(rank, first, last))
        given_out += 1
        if data.draw(st.booleans()):
            rank, first, last = data.draw(st.sampled_from(said))
            ledger.report(rank, run.report(rank, first, last))
            given_out += 1
            repeated += last - first
    assert_books_agree(run, ledger, list(range(len(run.traffic))))
    assert ledger.audit() == []
    figures = ledger.statistics()
    assert (figures.reports, figures.steps) == (given_out, len(run.traffic))
    assert figures.repeated_steps == repeated
    assert figures.dummy_steps == run.dummy.all(axis=1).sum()
    assert figures.gaps == figures.lost_steps == figures.late_steps == figures.unknown_epoch == 0


@given(st.data())
def test_what_is_dropped_costs_its_forwards_and_is_counted(data: st.DataObject) -> None:
    run = data.draw(runs())
    ranks = run.group.topology.ranks
    ledger = run.ledger()
    heard = np.zeros((len(run.traffic), ranks), dtype=np.bool_)
    reports = [
        (first, rank, last)
        for rank in range(ranks)
        for first, last in data.draw(st.composite(cut)(run, rank))
    ]
    gaps = missing = 0
    at: dict[int, int] = {}
    for first, rank, last in sorted(reports):
        if data.draw(st.booleans()):
            continue
        ledger.report(rank, run.report(rank, first, last))
        heard[first:last, rank] = True
        gaps += at.get(rank, first) < first
        missing += first - at.get(rank, first)
        at[rank] = last
    # Ranks that start later cannot complete what came before.
    complete = np.flatnonzero(heard.all(axis=1)).tolist()
    assert_books_agree(run, ledger, complete)
    figures = ledger.statistics()
    assert figures.steps == len(complete)
    assert (figures.gaps, figures.missing_steps) == (gaps, missing)


@given(st.data())
def test_a_node_says_what_its_ranks_would(data: st.DataObject) -> None:
    """Some ranks' reports of the same forwards, joined: the books are those of single reports."""
    run = data.draw(runs())
    ranks = run.group.topology.ranks
    single, joined = run.ledger(), run.ledger()
    kinds = [(run.epoch(forward), run.phase[forward]) for forward in range(len(run.traffic))]
    edges = [0, *(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]), len(kinds)]
    for first, last in data.draw(st.permutations(list(pairwise(edges)))):
        for _ in range(data.draw(st.integers(1, 3))):
            some = data.draw(st.sets(st.integers(0, ranks - 1), min_size=1))
            of_phase: dict[str, dict[int, HeatReport]] = {}
            for rank in sorted(some):
                report = run.report(rank, first, last)
                of_phase.setdefault(report.phase, {})[rank] = report
            for reports in of_phase.values():
                for rank, report in reports.items():
                    single.report(rank, report)
                joined.report_node(of_node(reports))
    assert joined.statistics() == single.statistics()
    assert joined.audit() == single.audit()
    for phase in ("all", "prefill", "decode"):
        assert joined.heat(phase).steps.tolist() == single.heat(phase).steps.tolist()
        for epoch in range(len(run.placements)):
            assert joined.loads(epoch, phase).tolist() == single.loads(epoch, phase).tolist()
