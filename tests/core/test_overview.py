"""A look at a simulated group: what it must agree with, at any moment of an epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplbd.core.events import CycleEnded, EpochEnded, PolicyFailed, Received, Unreachable
from eplbd.core.node import Node
from eplbd.core.overview import overview
from eplbd.core.placement import par
from eplbd.core.settings import PolicySettings
from eplbd.core.topology import Link
from eplbd.core.views import GroupOverview, RankState
from tests.core.test_modes import Noted
from tests.sim.world import QUICK, World

WATCHED = replace(QUICK, policy=PolicySettings(shadow=("other",)))


def look(world: World) -> GroupOverview:
    assert world.node is not None
    (group,) = overview(world.node).groups
    return group


def test_a_daemon_that_nobody_came_to_has_no_groups() -> None:
    seen = overview(Node(QUICK))
    assert (seen.groups, seen.policy, seen.suspended) == ((), QUICK.policy.name, False)


def test_a_settled_group_is_seen_as_it_is() -> None:
    world = Noted(seed=3)
    world.settle()
    seen = look(world)
    assert [rank.state for rank in seen.ranks] == [RankState.ATTACHED] * 3
    assert seen.phase == "ready"
    assert seen.digest == world.placement().digest
    assert {rank.node for rank in seen.ranks} == {rank.hello(1).node for rank in world.ranks}
    assert all(rank.reports > 0 and rank.heat_age_s is not None for rank in seen.ranks)
    assert all(0 <= rank.forward_lag <= seen.forward for rank in seen.ranks)


def test_totals_are_the_sums_of_the_lines() -> None:
    world = Noted(seed=5)
    world.settle()
    world.until(lambda: len(world.of(CycleEnded)) > 2)
    totals, lines = look(world).totals, world.of(EpochEnded)
    settled = [line for line in lines if line.outcome == "settled"]
    assert settled
    assert totals.epochs.get("settled") == len(settled)
    assert sum(totals.epochs.values()) == len(lines)
    assert sum(totals.cycles.values()) == len(world.of(CycleEnded))
    assert sum(totals.moves) == sum(line.moves for line in settled)
    measured = [cycle for cycle in world.of(CycleEnded) if cycle.par_realised]
    assert (totals.epoch, totals.cycle) == (lines[-1], measured[-1])
    idle = replace(measured[-1], outcome="unchanged", epochs_settled=0, par_realised=0.0)
    after = totals.after(idle, 0.0)
    assert after.cycle == measured[-1], "what it promised, and what came of it, is still to be seen"
    assert after.cycles["unchanged"] == totals.cycles.get("unchanged", 0) + 1
    size = look(world).expert_bytes
    for line in lines:
        assert sum(line.by_link) == line.moves
        assert line.bytes == (line.moves - line.by_link[Link.RANK]) * size
    assert totals.settled_at is not None


def test_observed_par_and_loads_are_those_of_the_window() -> None:
    world = Noted(seed=3)
    world.settle()
    world.until(lambda: look(world).window > 1)
    assert world.node is not None
    ledger = world.node.balancers["sim"].ledger
    assert ledger is not None
    loads = np.stack([step.load.T for step in ledger.since(-1)])
    seen = look(world)
    assert seen.observed_par is not None
    assert seen.rank_load is not None
    np.testing.assert_allclose(seen.observed_par, par(loads).mean(axis=0))
    np.testing.assert_allclose(seen.rank_load.mean(axis=1), 1.0)
    np.testing.assert_allclose(seen.rank_load.max(axis=1), par(loads.sum(axis=0)))
    assert not seen.observed_par.flags.writeable
    assert not seen.rank_load.flags.writeable


def test_an_accepted_plan_says_what_it_promised_as_its_books_do() -> None:
    world = Noted(seed=5)
    world.settle()
    world.until(lambda: look(world).stage == "moving")
    assert world.node is not None
    cycle, promised = world.node.balancers["sim"].cycle, look(world).planned_par
    assert cycle is not None
    assert promised is not None
    assert promised.shape == (2,)
    assert promised.mean() == pytest.approx(cycle.tally.par_predicted)


def test_an_epoch_under_way_is_seen_with_what_it_brings_and_waits_for() -> None:
    world = Noted(seed=5)
    world.settle()
    world.until(lambda: (now := look(world).epoch_now) is not None and now.bytes > 0)
    seen = look(world)
    assert seen.epoch_now is not None
    assert sum(rank.staged_bytes for rank in seen.ranks) == seen.epoch_now.bytes
    waited = tuple(rank.rank for rank in seen.ranks if rank.waited_for)
    assert waited == seen.epoch_now.waiting
    world.until(lambda: look(world).epoch_now is None)
    assert all(rank.staged_bytes == 0 for rank in look(world).ranks)


def test_a_rank_that_cannot_be_reached_is_lost_and_one_that_never_came_absent() -> None:
    world = Noted(seed=3)
    world.settle()
    hello, node = world.ranks[0].hello(1), Node(QUICK)
    world.feed(Unreachable(world.peer(1)))
    assert look(world).ranks[1].state is RankState.LOST
    assert look(world).phase == "gathering"
    node.step(Received(world.peer(0), 1, hello))
    (fresh,) = overview(node).groups
    states = [rank.state for rank in fresh.ranks]
    assert states == [RankState.GREETING, RankState.ABSENT, RankState.ABSENT]
    assert overview(node).alarms == ()
    assert fresh.observed_par is None
    assert fresh.ranks[1].last_seen_age_s is None


def test_how_much_of_the_bubbles_was_used_is_told_by_ranks() -> None:
    """In the lines of epochs and cycles, and as part of the budget: the busiest rank's share."""
    world = Noted(seed=3)
    world.transport.took = {0: (2.0, 0.25), 1: (2.0, 1.25), 2: (4.0, 0.5)}
    world.settle()
    world.until(lambda: len(world.of(CycleEnded)) > 2)
    for line in world.of(EpochEnded):
        assert line.bubble_used == (0.625 if line.outcome == "settled" else line.bubble_used)
    for cycle in world.of(CycleEnded):
        assert cycle.bubble_used == (0.625 if cycle.epochs_settled else 0.0)
        assert cycle.stall_s == 0.0
    assert look(world).budget.bubble_used == 0.625
    quiet = Noted(seed=3)
    quiet.settle()
    assert look(quiet).budget.bubble_used == 0.0, "ranks of an older release do not say"


def test_what_came_of_questions_is_counted_by_policy_and_outcome() -> None:
    world = Noted(seed=3, settings=WATCHED)
    world.settle()
    assert world.node is not None
    before = overview(world.node).results
    assert before.get((QUICK.policy.name, "ok"), 0) > 0
    node = world.node
    world.until(lambda: "other" in {s.name for s in look(world).shadows})
    node.questions.asked[10**6] = "sim"
    node.step(PolicyFailed(10**6, "timeout", "too slow"))
    assert overview(node).results[QUICK.policy.name, "timeout"] == 1


def test_a_shadow_is_seen_with_its_newest_score() -> None:
    world = Noted(seed=3, settings=WATCHED)
    world.settle()
    world.until(lambda: look(world).shadows[0].par_mean > 0)
    (shadow,) = look(world).shadows
    score = look(world).totals.scores["other"]
    assert (shadow.par_mean, shadow.active_par_mean) == (score.par_mean, score.active_par_mean)
    assert not shadow.suspended
