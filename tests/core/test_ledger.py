"""The ledger by hand: two ranks, three experts, one layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eplbd.core.ledger import Ledger, Mismatch
from eplbd.core.messages import Dispatch, HeatReport
from eplbd.core.placement import Placement, par
from eplbd.core.topology import Topology
from eplbd.errors import LocalProtocolError, PlacementError, RemoteProtocolError

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
        ledger.report(rank, said(30, [9, 0]))
    figures = ledger.statistics()
    assert (figures.steps, figures.lost_steps) == (2, 26)
    assert (figures.gaps, figures.missing_steps) == (2, 58)
    assert ledger.heat().steps[:, 0].tolist() == [[1, 0, 1], [9, 0, 9]]


def run(ledger: Ledger, first: int, forwards: int) -> None:
    """Both ranks report forwards one by one."""
    for forward in range(first, first + forwards):
        for rank in (0, 1):
            ledger.report(rank, said(forward, [forward, 0]))


@pytest.mark.parametrize("absurd", [2**52, 4 * 8 + 5, 10**9])
def test_one_rank_does_not_take_the_window_along(absurd: int) -> None:
    ledger = pair(lag_steps=4)
    run(ledger, 0, 4)
    with pytest.raises(RemoteProtocolError, match=f"rank 1: first_forward is {absurd}, expected"):
        ledger.report(1, said(absurd, [1, 0]))
    run(ledger, 4, 4)
    figures = ledger.statistics()
    assert (figures.steps, figures.astray, figures.gaps, figures.lost_steps) == (8, 1, 0, 0)


def test_a_clock_that_began_absurdly_is_put_right_by_all_ranks() -> None:
    ledger = pair(lag_steps=4)
    ledger.report(0, said(10**9, [1, 0]))
    with pytest.raises(RemoteProtocolError, match="rank 1"):
        ledger.report(1, said(0, [1, 0]))
    ledger.report(0, said(1, [1, 0]))
    ledger.report(1, said(1, [1, 0]))
    run(ledger, 2, 3)
    figures = ledger.statistics()
    assert (figures.steps, figures.astray) == (4, 1)
    assert ledger.heat().steps[:, 0, 2].tolist() == [1, 2, 3, 4]


def test_after_a_long_sleep_all_ranks_are_believed() -> None:
    ledger = pair(lag_steps=4)
    run(ledger, 0, 4)
    with pytest.raises(RemoteProtocolError, match="newest of the group"):
        ledger.report(1, said(1000, [1000, 0]))
    ledger.report(0, said(1001, [1001, 0]))
    ledger.report(1, said(1001, [1001, 0]))
    run(ledger, 1002, 3)
    figures = ledger.statistics()
    assert (figures.steps, figures.astray, figures.gaps) == (8, 1, 2)
    assert [step.forward for step in ledger.since(3)] == [1001, 1002, 1003, 1004]


def test_ranks_that_stray_apart_are_not_believed() -> None:
    ledger = pair(lag_steps=4)
    run(ledger, 0, 4)
    for rank, forward in ((0, 1000), (1, 1004)):
        with pytest.raises(RemoteProtocolError, match=f"rank {rank}"):
            ledger.report(rank, said(forward, [1, 0]))
    run(ledger, 4, 1)
    assert ledger.statistics().steps == 5


def test_complete_steps_are_kept_for_a_recording_once() -> None:
    ledger = pair()
    run(ledger, 0, 2)
    assert ledger.recorded() == ()
    ledger.recording = True
    run(ledger, 2, 2)
    ledger.report(0, said(4, [1, 0]))
    for rank in (0, 1):
        ledger.report(rank, said(5, [0, 0], dummy=[True]))
    kept = ledger.recorded()
    assert [(step.forward, step.dummy, step.tokens) for step in kept] == [
        (2, False, 2),
        (3, False, 2),
        (5, True, 2),
    ]
    assert ledger.recorded() == ()


def test_replicated_tokens_are_counted_once() -> None:
    ledger = pair(dispatch=Dispatch.REPLICATED)
    ledger.recording = True
    for rank in (0, 1):
        ledger.report(rank, said(0, [1, 1], routed=[4]))
    assert [step.tokens for step in ledger.recorded()] == [1]


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
