"""When a rebalance is wanted, and which proposals are paid for."""

import numpy as np
import pytest

from eplbd.core.cycle import EPOCH_RETRIES, Cycle, Stage, Tally, mean_par
from eplbd.core.events import EpochEnded
from eplbd.core.heat import Heat
from eplbd.core.placement import Placement
from eplbd.core.settings import BalanceSettings
from eplbd.core.topology import Topology
from eplbd.errors import PlacementError

CURRENT = Placement.linear(1, 4, 2, 3)
"""Slots 0 1 2 | 3 0 1."""

BETTER = np.array([[[0, 1, 2], [3, 0, 2]]], dtype=np.int32)
SETTINGS = BalanceSettings(interval_s=10.0, min_steps=4, par_trigger=1.05, min_gain=0.01)


def hot(expert: int, steps: int = 16) -> Heat:
    heat = np.full((steps, 1, 4), 10, dtype=np.int32)
    heat[:, :, expert] = 100
    return Heat(heat, "all")


def cycle(settings: BalanceSettings = SETTINGS) -> Cycle:
    return Cycle(settings, Topology.single_node(2, 3), layers=1, experts=4)


def planning(settings: BalanceSettings = SETTINGS) -> Cycle:
    made = cycle(settings)
    assert made.consider(hot(2), CURRENT, "p", 0.0) is not None
    return made


def test_the_policy_does_not_see_the_steps_it_is_judged_on() -> None:
    made = cycle()
    heat = Heat(hot(2).steps + np.arange(16, dtype=np.int32)[:, None, None], "all")
    seen = made.consider(heat, CURRENT, "p", 0.0)
    assert seen is not None
    assert seen.steps.shape[0] == 12
    assert (made.judged == heat.steps[12:]).all()


def test_balanced_heat_asks_nobody_and_rests_an_interval() -> None:
    made = cycle()
    even = Heat(np.array([[[10, 10, 5, 5]]] * 8, dtype=np.int32), "all")
    assert mean_par(CURRENT, even.steps) <= SETTINGS.par_trigger
    assert made.consider(even, CURRENT, "p", 5.0) is None
    assert not made.wants_plan(14.9)
    assert made.wants_plan(15.0)


def test_too_few_steps_are_no_basis() -> None:
    assert cycle().consider(hot(2, steps=3), CURRENT, "p", 0.0) is None


def test_hold_mode_never_wants_a_plan() -> None:
    assert not cycle(BalanceSettings(mode="hold")).wants_plan(1e9)


def test_a_gain_is_taken() -> None:
    made = planning()
    assert made.answered(BETTER, CURRENT, 0.1, 0.0) == ""
    assert made.stage is Stage.MOVING
    assert made.tally.par_predicted < made.tally.par_before


def test_the_same_again_is_unchanged() -> None:
    made = planning()
    assert made.answered(CURRENT.slots, CURRENT, 0.1, 0.0) == "unchanged"
    assert made.stage is Stage.RESTING


def test_a_loss_is_refused() -> None:
    made = planning()
    worse = np.array([[[0, 1, 3], [2, 0, 1]]], dtype=np.int32)
    assert "under min_gain" in made.answered(worse, CURRENT, 0.1, 0.0)


def test_moves_must_be_paid_for() -> None:
    made = planning(BalanceSettings(min_steps=4, horizon_s=10.0))
    assert "does not pay" in made.answered(BETTER, CURRENT, 0.1, 100.0)


def test_no_placement_is_the_policys_fault() -> None:
    with pytest.raises(PlacementError, match="holds expert 3 in no slot"):
        planning().answered(np.array([[[0, 1, 2], [0, 1, 2]]]), CURRENT, 0.1, 0.0)


def test_more_moves_than_allowed_is_the_policys_fault() -> None:
    made = planning(BalanceSettings(min_steps=4, max_moves=1))
    everything = np.array([[[3, 2, 1], [0, 1, 2]]], dtype=np.int32)
    with pytest.raises(PlacementError, match="the budget is 1"):
        made.answered(everything, CURRENT, 0.1, 0.0)


def ended(outcome: str, reason: str = "r", stall_s: float = 0.0, used: float = 0.0) -> EpochEnded:
    """An epoch's line: one move of one byte."""
    return EpochEnded(
        "g", 1, 1, outcome, reason, layers=1, moves=1, bytes=1, rounds=1, attempts=1, at=1,
        prepare_s=0.0, stage_s=1.0, commit_s=0.0, stall_s=stall_s, policy="p", bubble_used=used,
    )  # fmt: skip


def test_settled_epochs_are_added_up() -> None:
    tally = Tally()
    for stall_s, used in ((0.0, 0.25), (0.5, 0.75), (0.25, 0.5)):
        tally.book(ended("settled", stall_s=stall_s, used=used))
    assert (tally.settled, tally.moves, tally.bytes) == (3, 3, 3)
    assert tally.stall_s == pytest.approx(0.75)
    assert tally.bubble_used == pytest.approx(0.5)


def test_aborted_epochs_are_tried_again_later_and_later_and_then_dropped() -> None:
    made = planning()
    assert made.answered(BETTER, CURRENT, 0.1, 0.0) == ""
    pauses = []
    now = 0.0
    for _ in range(EPOCH_RETRIES):
        assert made.may_move(now)
        made.epoch_ended(ended("aborted"), now)
        if made.stage is Stage.MOVING:
            assert not made.may_move(now)
            pauses.append(made.next_at - now)
            now = made.next_at
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1]
    assert made.stage is Stage.MEASURING
    assert made.outcome == "failed"
    assert "r" in made.tally.reason


# --- load that has not changed ------------------------------------------------------------------


def refused(settings: BalanceSettings = SETTINGS) -> Cycle:
    """A cycle that was answered `unchanged` at 0 s, under load on expert 2."""
    made = planning(settings)
    assert made.answered(CURRENT.slots, CURRENT, 0.1, 0.0) == "unchanged"
    return made


def test_what_was_refused_is_not_asked_again_under_the_same_load() -> None:
    made = refused()
    assert made.consider(hot(2), CURRENT, "p", 10.0) is None
    assert made.stage is Stage.RESTING
    assert not made.wants_plan(19.9)
    assert made.wants_plan(20.0)


def test_another_load_policy_or_placement_is_asked_about() -> None:
    asked = Cycle.consider
    assert asked(refused(), hot(3), CURRENT, "p", 10.0) is not None
    assert asked(refused(), hot(2), CURRENT, "q", 10.0) is not None
    moved = Placement(np.array([[[0, 1, 3], [2, 0, 1]]], dtype=np.int32), 4)
    assert asked(refused(), hot(2), moved, "p", 10.0) is not None


def test_after_the_horizon_it_is_asked_again_whatever_the_load() -> None:
    made = refused(BalanceSettings(min_steps=4, horizon_s=60.0))
    assert made.consider(hot(2), CURRENT, "p", 59.9) is None
    assert made.consider(hot(2), CURRENT, "p", 60.0) is not None


def test_a_plan_that_was_carried_out_leaves_room_for_the_next() -> None:
    """A budget of moves may need several rebalances for one load."""
    made = planning()
    assert made.answered(BETTER, CURRENT, 0.1, 0.0) == ""
    made.measure(1.0)
    made.rest()
    assert made.consider(hot(2), CURRENT, "p", 20.0) is not None


def test_record_mode_takes_the_proposal_down_and_moves_nothing() -> None:
    made = planning(BalanceSettings(mode="record", min_steps=4))
    assert made.wants_plan(1e9) is False
    assert made.answered(BETTER, CURRENT, 0.1, 0.0) == "recorded"
    assert made.stage is Stage.RESTING
    assert made.plan is None
    assert made.target == Placement(BETTER, 4)
    assert made.tally.par_predicted < made.tally.par_before
    assert made.tally.moves == 1
    assert made.wants_plan(1e9)


# --- shares -------------------------------------------------------------------------------------

AWAY = np.array([[[0, 0, 1], [1, 1, 1]]], dtype=np.float32)
"""Experts 0 and 1 are served by rank 1 alone, where expert 2 is not."""


def weighted() -> Cycle:
    made = planning()
    made.weighted = True
    return made


def test_shares_alone_are_a_gain_and_cost_no_move() -> None:
    made = weighted()
    assert made.answered(CURRENT.slots, CURRENT, 0.1, 1e9, AWAY) == ""
    assert made.stage is Stage.MOVING
    assert made.tally.par_predicted < made.tally.par_before
    assert made.plan is not None
    assert (made.plan.moves, made.plan.is_empty) == (0, False)


def test_shares_that_make_it_worse_are_refused() -> None:
    worse = np.array([[[1, 1, 1], [1, 0, 0]]], dtype=np.float32)
    assert "under min_gain" in weighted().answered(CURRENT.slots, CURRENT, 0.1, 0.0, worse)


def test_an_even_split_is_unchanged_whatever_the_engine() -> None:
    halves = np.array([[[0.5, 0.5, 1], [1, 0.5, 0.5]]])
    assert planning().answered(CURRENT.slots, CURRENT, 0.1, 0.0, halves) == "unchanged"
    assert weighted().answered(CURRENT.slots, CURRENT, 0.1, 0.0, halves) == "unchanged"
    split = Placement(CURRENT.slots, 4, AWAY)
    assert weighted().answered(CURRENT.slots, split, 0.1, 0.0, AWAY) == "unchanged"


def test_shares_for_an_engine_that_takes_none_are_the_policys_fault() -> None:
    with pytest.raises(PlacementError, match=r"return shares only where budget\.weighted is true"):
        planning().answered(CURRENT.slots, CURRENT, 0.1, 0.0, AWAY)


def test_wrong_shares_are_the_policys_fault() -> None:
    with pytest.raises(PlacementError, match=r"layer 0, expert 0: .* sum to 2"):
        weighted().answered(CURRENT.slots, CURRENT, 0.1, 0.0, np.ones((1, 2, 3)))


# --- an engine's own duplicates -----------------------------------------------------------------

TWICE = Placement(np.array([[[0, 0, 2], [3, 0, 1]]], dtype=np.int32), 4)


def test_what_the_engine_began_with_need_not_be_mended() -> None:
    made = cycle()
    assert made.consider(hot(2), TWICE, "p", 0.0) is not None
    assert made.answered(TWICE.slots, TWICE, 0.1, 0.0) == "unchanged"


def test_a_policy_does_not_bring_duplicates() -> None:
    with pytest.raises(PlacementError, match="holds expert 0 again"):
        planning().answered(TWICE.slots, CURRENT, 0.1, 0.0)
