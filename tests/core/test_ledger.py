"""The ledger against a plain account of what every rank did in every forward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core.ledger import Ledger, Mismatch
from eplbd.core.messages import Counts, Dispatch, HeatReport
from eplbd.core.placement import Placement, par
from eplbd.core.topology import Topology
from eplbd.errors import LocalProtocolError, PlacementError, RemoteProtocolError
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


# --- one group of two ranks, by hand ------------------------------------------------------------


PAIR = Topology.single_node(2, 2)
PLACEMENT = Placement(np.array([[[0, 1], [2, 0]]], np.int32), 3)


def pair(
    *, window_steps: int = 8, lag_steps: int = 128, dispatch: Dispatch = Dispatch.ALL_TO_ALL
) -> Ledger:
    ledger = Ledger(
        PAIR,
        layers=1,
        experts=3,
        window_steps=window_steps,
        lag_steps=lag_steps,
        dispatch=dispatch,
    )
    ledger.placed(7, PLACEMENT)
    return ledger


def said(
    first: int,
    *counts: list[int],
    epoch: int = 7,
    phase: str = "decode",
    routed: list[int] | None = None,
    dummy: list[bool] | None = None,
) -> HeatReport:
    """A rank's report: per step its slots' tokens; unless told, it routed as many itself."""
    return HeatReport(
        epoch=epoch,
        first_forward=first,
        phase=phase,
        counts=np.array([[step] for step in counts], dtype=np.int32),
        routed=np.array(routed or [sum(step) for step in counts]),
        tokens=np.ones(len(counts), np.int32),
        dummy=np.array(dummy or [False] * len(counts)),
    )


def test_slots_become_experts() -> None:
    ledger = pair()
    ledger.report(0, said(5, [10, 20], [1, 2]))
    assert len(ledger.heat().steps) == 0
    ledger.report(1, said(5, [30, 5]))
    assert ledger.heat("decode").steps.tolist() == [[[15, 20, 30]]]
    assert ledger.loads(7).tolist() == [[[30, 35]]]
    assert par(ledger.loads(7)).tolist() == [[35 / 32.5]]
    assert ledger.loads(6).shape == (0, 1, 2)


def test_a_report_under_an_unknown_epoch_is_counted_and_dropped() -> None:
    ledger = pair()
    ledger.report(0, said(5, [10, 20], epoch=8))
    ledger.report(1, said(5, [30, 5]))
    assert len(ledger.heat().steps) == 0
    assert ledger.statistics().unknown_epoch == 1
    assert ledger.statistics().gaps == 0


def test_few_placements_are_kept_but_the_newest() -> None:
    ledger = pair()
    for epoch in range(8, 12):
        ledger.placed(epoch, PLACEMENT)
    ledger.report(0, said(5, [1, 1], epoch=7))
    assert ledger.statistics().unknown_epoch == 1
    ledger.report(0, said(5, [1, 1], epoch=8))
    assert ledger.statistics().unknown_epoch == 1


def test_a_placement_that_comes_back_is_the_newest() -> None:
    ledger = pair()
    for epoch in (8, 9, 10, 7, 11):
        ledger.placed(epoch, PLACEMENT)
    ledger.report(0, said(5, [1, 1], epoch=7))
    assert ledger.statistics().unknown_epoch == 0


def test_a_placement_is_judged() -> None:
    with pytest.raises(PlacementError, match="expert 2 in no slot"):
        pair().placed(8, Placement(np.array([[[0, 1], [1, 0]]], np.int32), 3))


def test_the_window_forgets_the_oldest() -> None:
    ledger = pair(window_steps=2)
    for forward in range(4):
        for rank in (0, 1):
            ledger.report(rank, said(forward, [forward, 0]))
    assert ledger.heat().steps[:, 0, 0].tolist() == [2, 3]
    assert ledger.heat("prefill").steps.shape == (0, 1, 3)


def test_a_rare_phase_keeps_its_own_window() -> None:
    ledger = pair(window_steps=2)
    for forward in range(6):
        for rank in (0, 1):
            phase = "prefill" if forward == 0 else "decode"
            ledger.report(rank, said(forward, [forward, 1], phase=phase))
    assert ledger.heat("prefill").steps[:, 0, 1].tolist() == [1]
    assert len(ledger.heat("decode").steps) == 2


def test_what_leaves_the_ring_incomplete_is_lost() -> None:
    ledger = pair(lag_steps=4)
    ledger.report(0, said(0, [1, 0], [2, 0], [3, 0], [4, 0]))
    ledger.report(1, said(1, [1, 0]))
    ledger.report(0, said(4, [5, 0], [6, 0], [7, 0]))
    assert ledger.statistics().lost_steps == 2, "forwards 0 and 2"
    ledger.report(1, said(2, [1, 0], [1, 0]))
    figures = ledger.statistics()
    assert (figures.late_steps, figures.steps) == (1, 2)
    assert ledger.heat().steps[:, 0, 0].tolist() == [2, 4]
    assert ledger.heat().steps[:, 0, 2].tolist() == [1, 1]


def test_a_jump_over_the_whole_ring_loses_what_it_skips() -> None:
    ledger = pair(lag_steps=4)
    for rank in (0, 1):
        ledger.report(rank, said(0, [1, 0]))
    for rank in (0, 1):
        ledger.report(rank, said(100, [9, 0]))
    figures = ledger.statistics()
    assert (figures.steps, figures.lost_steps) == (2, 96)
    assert (figures.gaps, figures.missing_steps) == (2, 198)
    assert ledger.heat().steps[:, 0].tolist() == [[1, 0, 1], [9, 0, 9]]


def test_a_late_step_is_filed_where_it_belongs() -> None:
    ledger = pair()
    ledger.report(0, said(0, [1, 0], [2, 0]))
    ledger.report(1, said(1, [0, 0]))
    ledger.report(1, said(0, [0, 0]))
    assert ledger.heat().steps[:, 0, 0].tolist() == [1, 2]


def test_dummies_are_no_samples() -> None:
    ledger = pair()
    for rank in (0, 1):
        idle = [True, rank == 0]
        ledger.report(rank, said(0, [3, 3], [4, 4], dummy=idle))
    assert ledger.heat().steps.tolist() == [[[8, 4, 4]]]
    assert ledger.statistics().dummy_steps == 1


# --- the audit ----------------------------------------------------------------------------------


def test_tokens_that_were_sent_and_not_received_are_a_mismatch() -> None:
    ledger = pair()
    ledger.report(0, said(3, [5, 5], routed=[11]))
    assert ledger.audit() == []
    ledger.report(1, said(3, [5, 5]))
    assert ledger.audit() == [Mismatch(3, "ranks routed 21 assignments, their slots processed 20")]
    assert ledger.audit() == [], "each is told once"
    assert len(ledger.heat().steps) == 0, "contradictory steps are no samples"
    assert ledger.statistics().mismatches == 1


def test_replicated_ranks_must_route_the_same() -> None:
    ledger = pair(dispatch=Dispatch.REPLICATED)
    ledger.report(0, said(3, [5, 5], [1, 2], [1, 1], routed=[16, 10, 4]))
    ledger.report(1, said(3, [4, 2], [3, 4], [1, 1], routed=[16, 9, 4]))
    assert ledger.heat().steps.tolist() == [[[7, 5, 4]], [[2, 1, 1]]]
    (mismatch,) = ledger.audit()
    assert mismatch.forward == 4
    assert "rank 0 routed 10 assignments, rank 1 9" in mismatch.detail


def test_replicated_slots_must_process_what_was_routed() -> None:
    ledger = pair(dispatch=Dispatch.REPLICATED)
    for rank in (0, 1):
        ledger.report(rank, said(3, [5, 5]))
    assert ledger.audit() == [Mismatch(3, "ranks routed 10 assignments, their slots processed 20")]


def test_ranks_must_flip_at_one_forward() -> None:
    ledger = pair()
    ledger.placed(8, PLACEMENT)
    ledger.report(0, said(0, [1, 1], [1, 1]))
    ledger.report(1, said(0, [1, 1]))
    ledger.report(1, said(1, [1, 1], epoch=8))
    assert ledger.audit() == [Mismatch(1, "ranks ran it under different epochs")]
    assert len(ledger.heat().steps) == 1


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"phase": "warmup"}, "phase is 'warmup', expected"),
        ({"first_forward": -1}, "first_forward is -1, expected 0 to"),
        ({"first_forward": 2**63}, "first_forward is 9223372036854775808"),
        ({"epoch": -1}, "epoch is -1"),
        (
            {"counts": np.zeros((1, 2, 2), np.int32)},
            r"counts has shape \(1, 2, 2\), expected \(1, 1, 2",
        ),
        ({"counts": np.zeros((0, 1, 2), np.int32)}, "counts has 0 steps, expected 1..128"),
        ({"counts": np.zeros((129, 1, 2), np.int32)}, "counts has 129 steps"),
        ({"counts": np.zeros((), np.int32)}, "counts has 0 steps"),
        ({"counts": np.full((1, 1, 2), np.nan)}, "counts has dtype float64, expected an integer"),
        ({"counts": np.array([[[1, -2]]], np.int32)}, "counts has a negative value, -2"),
        (
            {"counts": np.array([[[1, 2**31]]])},
            "counts has a value of 2147483648, expected at most",
        ),
        (
            {"counts": np.full((1, 1, 2), 2**31 - 1, np.int32)},
            "counts bring forward 0, layer 0 to 4294967294 tokens",
        ),
        ({"routed": np.array([1.0])}, "routed has dtype float64"),
        ({"routed": np.array([-1])}, "routed has a negative value"),
        ({"routed": np.array([1, 2])}, r"routed has shape \(2,\), expected \(1,\)"),
        ({"tokens": np.array([-1])}, "tokens has a negative value"),
        ({"dummy": np.array([0])}, r"dummy is int64 \(1,\), expected bool"),
        ({"dummy": np.array([True, True])}, r"dummy is bool \(2,\), expected bool \(1,\)"),
    ],
)
def test_refuses_what_no_correct_rank_sends(changes: dict[str, Any], wrong: str) -> None:
    ledger = pair()
    with pytest.raises(RemoteProtocolError, match=f"^heat report of rank 1: {wrong}"):
        ledger.report(1, replace(said(0, [1, 1]), **changes))
    for rank in (0, 1):
        ledger.report(rank, said(0, [1, 1]))
    assert ledger.heat().steps.tolist() == [[[2, 1, 1]]], "nothing of the refused report was taken"
    assert ledger.statistics().reports == 2


def test_refuses_counts_that_overflow_only_together() -> None:
    ledger = pair()
    ledger.report(0, said(0, [2**30, 0]))
    with pytest.raises(RemoteProtocolError, match="of rank 1: counts bring forward 0"):
        ledger.report(1, said(0, [2**30, 0]))


@pytest.mark.parametrize("rank", [-1, 2])
def test_refuses_ranks_of_other_groups(rank: int) -> None:
    with pytest.raises(RemoteProtocolError, match=r"expected 0\.\.1"):
        pair().report(rank, said(0, [1, 1]))


def test_refuses_windows_that_hold_nothing() -> None:
    with pytest.raises(LocalProtocolError, match="window_steps 0"):
        pair(window_steps=0)
    with pytest.raises(LocalProtocolError, match="no window for phase 'mixed'"):
        pair().heat("mixed")
