"""Shadows by hand: what they are shown, how they are scored, and that they live their own lives."""

from dataclasses import replace

import numpy as np
import pytest

from eplbd.core.assembly import Step
from eplbd.core.cycle import Stage
from eplbd.core.events import PolicyAnswered, ShadowScored
from eplbd.core.heat import Heat
from eplbd.core.orders import Orders
from eplbd.core.placement import Placement, par, rank_load
from eplbd.core.settings import BalanceSettings
from eplbd.core.shadow import SCORED_STEPS, Look, Score, Shadow, Shadows
from eplbd.core.topology import Topology

TOPOLOGY = Topology.single_node(2, 3)
CURRENT = Placement.linear(1, 4, 2, 3)
"""Slots 0 1 2 | 3 0 1."""

BETTER = np.array([[[0, 1, 2], [3, 0, 2]]], dtype=np.int32)
SETTINGS = BalanceSettings(interval_s=10.0, min_steps=4, par_trigger=1.05)
NONE = Orders()


def window(hot: int, first: int, steps: int = 16, moves: int = 0, orders: Orders = NONE) -> Look:
    """Steps in which one expert is hot, as served by `CURRENT`."""
    heat = np.full((1, 4), 10, dtype=np.int32)
    heat[:, hot] = 100
    load = rank_load(CURRENT, heat).astype(np.int32).T
    none = np.zeros(2, dtype=np.int64)
    made = [
        Step(first + i, 0, 2, dummy=False, torn=False, tokens=8, heat=heat, load=load, routed=none)
        for i in range(steps)
    ]
    return Look(Heat(np.stack([heat] * steps), "all"), made, moves, CURRENT, orders)


def shadows(*names: str, settings: BalanceSettings = SETTINGS) -> Shadows:
    made = Shadows(settings, TOPOLOGY, 1, 4)
    made.retain(names, CURRENT)
    return made


def turn(made: Shadows, now: float = 0.0) -> tuple[list[ShadowScored], list[Shadow]]:
    """One shadow's turns: scores told, and who is to be asked (with request 7)."""
    scores, asked = [], []
    found = made.turn("g", now)
    if isinstance(found, ShadowScored):
        scores.append(found)
        found = made.turn("g", now)
    if found is not None:
        assert not isinstance(found, ShadowScored), "it is shown a window before the next acts"
        found[0].request = 7
        asked.append(found[0])
    return scores, asked


def asked_first(made: Shadows, hot: int = 2) -> Shadow:
    made.look(window(hot, 0), 0.0)
    scores, (shadow,) = turn(made)
    assert scores == []
    return shadow


def scored_next(made: Shadows, look: Look, now: float = 10.0) -> ShadowScored:
    made.look(look, now)
    (score,), _ = turn(made, now)
    return score


def test_a_shadow_is_scored_on_the_window_after_the_one_it_was_shown() -> None:
    made = shadows("p")
    asked_first(made)
    assert made.answered("p", PolicyAnswered(7, BETTER, 0.25), 0.0) == ""
    look = window(2, 16, moves=3)
    score = scored_next(made, look)
    heat = look.heat.steps
    assert (score.policy, score.outcome, score.steps) == ("p", "applied", 16)
    assert (score.moves, score.active_moves, score.plan_s) == (1, 3, 0.25)
    assert score.par_mean == pytest.approx(par(rank_load(Placement(BETTER, 4), heat)).mean())
    assert score.active_par_mean == pytest.approx(par(rank_load(CURRENT, heat)).mean(), rel=0.01)
    assert score.par_mean == pytest.approx(score.par_predicted)
    assert score.par_mean < score.par_before


def test_what_it_was_shown_is_no_next_window() -> None:
    made = shadows("p")
    asked_first(made)
    made.answered("p", PolicyAnswered(7, BETTER, 0.1), 0.0)
    made.look(window(2, 0), 10.0)
    assert turn(made, 10.0) == ([], [])
    made.look(window(2, 3), 20.0)
    assert turn(made, 20.0) == ([], []), "three steps are no window"
    score = scored_next(made, window(2, 4), 30.0)
    assert score.steps == 4


def test_its_placements_build_on_each_other() -> None:
    """The map in force never changes; the shadow's does, and only new moves are counted."""
    made = shadows("p")
    asked_first(made)
    made.answered("p", PolicyAnswered(7, BETTER, 0.1), 0.0)
    made.look(window(3, 16), 10.0)
    _, (shadow,) = turn(made, 10.0)
    assert shadow.placement == Placement(BETTER, 4)
    assert shadow.cycle.stage is Stage.PLANNING
    further = np.array([[[0, 1, 3], [3, 0, 2]]], dtype=np.int32)
    made.answered("p", PolicyAnswered(7, further, 0.1), 0.0)
    assert shadow.placement == Placement(further, 4)
    assert shadow.moves == 1, "from the map in force it would be two"


def test_a_shadow_under_its_trigger_rests_and_is_scored_all_the_same() -> None:
    made = shadows("p")
    shadow = asked_first(made)
    made.answered("p", PolicyAnswered(7, BETTER, 0.1), 0.0)
    made.look(window(2, 16), 10.0)
    assert turn(made, 10.0)[1] == [], "on its own map the load is even"
    score = scored_next(made, window(2, 32), 20.0)
    assert (score.outcome, score.moves) == ("rested", 0)
    assert shadow.placement == Placement(BETTER, 4)


def test_a_refused_proposal_and_a_failure_leave_its_map() -> None:
    made = shadows("p")
    asked_first(made)
    worse = np.array([[[0, 1, 3], [2, 0, 1]]], dtype=np.int32)
    made.answered("p", PolicyAnswered(7, worse, 0.1), 0.0)
    score = scored_next(made, window(1, 16))
    assert score.outcome == "refused"
    assert "min_gain" in score.reason
    assert score.par_mean == pytest.approx(score.active_par_mean, rel=0.01)


def test_no_placement_is_its_own_fault() -> None:
    made = shadows("p")
    asked_first(made)
    short = np.array([[[0, 1, 2], [0, 1, 2]]])
    assert "holds expert 3 in no slot" in made.answered("p", PolicyAnswered(7, short, 0.1), 0.0)
    assert scored_next(made, window(2, 16)).outcome == "failed"


def test_an_answer_to_another_question_is_nobodys() -> None:
    made = shadows("p")
    shadow = asked_first(made)
    assert made.answered("p", PolicyAnswered(6, BETTER, 0.1), 0.0) == ""
    assert made.answered("q", PolicyAnswered(7, BETTER, 0.1), 0.0) == ""
    made.failed("p", 6, "raised")
    assert shadow.request == 7
    assert shadow.placement == CURRENT


def test_one_acts_at_a_time_and_all_see_the_same() -> None:
    made = shadows("p", "q", "r")
    look = window(2, 0)
    made.look(look, 0.0)
    turns = [turn(made)[1] for _ in range(4)]
    assert [[shadow.name for shadow in asked] for asked in turns] == [["p"], ["q"], ["r"], []]
    assert {shadow.shown for shadow in made.members.values()} == {15}


def test_who_is_still_planning_is_not_asked_again() -> None:
    made = shadows("p", "q")
    made.look(window(2, 0), 0.0)
    _, (slow,) = turn(made)
    _, (quick,) = turn(made)
    made.answered("q", PolicyAnswered(7, BETTER, 0.1), 0.0)
    made.look(window(3, 16), 10.0)
    scores, _ = turn(made, 10.0)
    assert [score.policy for score in scores] == ["q"]
    assert turn(made, 10.0) == ([], [])
    made.answered("p", PolicyAnswered(7, BETTER, 9.0), 0.0)
    late = scored_next(made, window(3, 16, steps=32), 20.0)
    assert (late.policy, late.steps, late.plan_s) == ("p", 32, 9.0)
    assert (slow.name, quick.name) == ("p", "q")


def test_a_shadow_that_is_dropped_takes_its_turn_along() -> None:
    made = shadows("p", "q")
    made.look(window(2, 0), 0.0)
    made.retain(["q"], CURRENT)
    assert [shadow.name for shadow in turn(made)[1]] == ["q"]
    made.retain(["p", "q"], Placement(BETTER, 4))
    assert made.members["p"].placement == Placement(BETTER, 4), "from what is in force now"
    assert made.members["q"].placement == CURRENT


def test_the_score_is_over_steps_evenly_spaced() -> None:
    made = shadows("p")
    asked_first(made)
    made.answered("p", PolicyAnswered(7, BETTER, 0.1), 0.0)
    assert scored_next(made, window(2, 16, steps=500)).steps <= SCORED_STEPS


def test_the_tail_is_over_steps_not_over_layers() -> None:
    loads = np.ones((100, 2, 2))
    loads[:4, 0] = (3, 1)
    score = Score.of(loads)
    assert score.mean == pytest.approx(1 + 0.04 * 0.25)
    assert score.p95 == pytest.approx(1.0)
    assert score.p99 == pytest.approx(1.25)


@pytest.mark.parametrize("mode", ["hold", "record", "static", "dynamic"])
def test_the_mode_of_the_group_is_not_theirs(mode: str) -> None:
    made = shadows("p", settings=BalanceSettings(mode=mode, min_steps=4))
    shadow = asked_first(made)
    assert made.answered("p", PolicyAnswered(7, BETTER, 0.1), 0.0) == ""
    assert shadow.placement == Placement(BETTER, 4)


def test_orders_hold_for_a_shadow_as_for_the_active_policy() -> None:
    """A pinned expert stays where it is; a placement that cannot spare a rank is given up."""
    pinned = Orders(pins=frozenset({(0, 2)}))
    made = shadows("p")
    made.look(window(2, 0, orders=pinned), 0.0)
    turn(made)
    assert made.answered("p", PolicyAnswered(7, BETTER, 0.1), 0.0) == ""
    assert made.members["p"].placement == CURRENT
    assert made.members["p"].outcome == "unchanged"


def test_one_whose_placement_cannot_spare_a_drained_rank_goes_on_from_the_one_in_force() -> None:
    roomy = Topology.single_node(3, 3)
    current = Placement(np.array([[[0, 1, 2], [3, 0, 1], [3, 2, 0]]], dtype=np.int32), 4)
    alone = Placement(np.array([[[0, 1, 2], [1, 0, 2], [3, 2, 0]]], dtype=np.int32), 4)
    look = replace(window(2, 0), placement=current, orders=Orders(drained=frozenset({2})))
    made = Shadows(SETTINGS, roomy, 1, 4)
    made.retain(["p"], alone)
    made.look(look, 0.0)
    _, (shadow,) = turn(made)
    assert shadow.placement == current
    assert made.answered("p", PolicyAnswered(7, BETTER, 0.1), 0.0) == ""
    assert shadow.placement.ranks == 3
    assert (shadow.placement.slots[:, 2] == current.slots[:, 2]).all(), "it keeps what it holds"
