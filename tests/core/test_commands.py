"""Every command of an operator in the simulated world: its effect, and its refusal."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from eplbd.core import commands as c
from eplbd.core.cycle import Stage
from eplbd.core.events import EpochEnded, PolicyFailed
from eplbd.core.plan import align
from tests.core.test_modes import somewhere
from tests.core.test_protocol import inject
from tests.sim.commanded import CALM, WIDE, Commanded, led
from tests.sim.world import QUICK, Shape

# --- pause, freeze, resume ----------------------------------------------------------------------


@pytest.mark.parametrize("command", [c.Pause(), c.Freeze(), c.Pause("sim"), c.Freeze("sim")])
def test_a_hold_lets_nothing_begin_until_it_is_lifted(command: c.Command) -> None:
    world = led()
    world.until(lambda: world.settled > 0)
    told = world.told(command)
    assert "resume" in told
    world.run(400)
    held, mark = world.settled, len(world.effects)
    world.run(3000)
    assert world.settled == held
    assert not world.asks(mark)
    assert world.told(c.Resume()) == "resumed"
    world.until(lambda: world.settled > held)


def test_a_hold_names_who_and_why_where_it_refuses_another() -> None:
    world = led()
    world.told(c.Pause())
    assert "paused by alice: a test" in world.refused(c.Pause())
    assert "frozen" in world.told(c.Freeze())
    assert "frozen by alice: a test" in world.refused(c.Freeze())
    assert "every group is frozen" in world.refused(c.Pause("sim"))
    assert world.kept
    assert "paused" in world.told(c.Pause())
    assert not world.kept, "what is only paused does not outlive the daemon"
    world.told(c.Resume())
    assert "nothing is paused" in world.refused(c.Resume())


def test_everyones_hold_is_not_lifted_for_one() -> None:
    world = led()
    world.told(c.Freeze())
    assert "resume without naming one" in world.refused(c.Resume("sim"))
    world.told(c.Resume())
    world.told(c.Pause("sim"))
    world.told(c.Resume("sim"))
    assert "no group 'other'" in world.refused(c.Freeze("other"))


def test_a_pause_ends_the_plan_between_two_epochs() -> None:
    world = Commanded(seed=5, shape=Shape(layers=6))
    world.until(lambda: world.settled > 0)
    world.until(world.midway)
    mark = len(world.effects)
    world.told(c.Pause())
    world.until(lambda: bool(world.ended(mark)))
    (ended,) = world.ended(mark)
    assert ended.reason == "paused by alice: a test"
    world.run(3000)
    assert world.ended(mark) == [ended]


def test_an_epoch_that_can_be_given_up_is_when_all_is_frozen() -> None:
    world = Commanded(seed=6, shape=Shape(layers=6))
    assert world.node is not None
    balancer = world.node.balancers.get

    def begun() -> bool:
        now = balancer("sim")
        return now is not None and now.group.leader is not None

    world.until(begun)
    mark, before = len(world.effects), world.settled
    world.told(c.Freeze())
    world.until(lambda: any(isinstance(e, EpochEnded) for e in world.effects[mark:]))
    (epoch,) = [e for e in world.effects[mark:] if isinstance(e, EpochEnded)]
    if epoch.outcome == "aborted":
        assert "frozen by alice" in epoch.reason
    world.run(3000)
    assert world.settled == before + (epoch.outcome == "settled")


def test_a_freeze_outlives_the_daemon_and_a_pause_does_not() -> None:
    world = led()
    world.told(c.Freeze())
    world.kill_daemon()
    world.start_daemon()
    world.until(lambda: bool(world.node and world.node.balancers))
    held = world.settled
    world.run(3000)
    assert world.settled == held
    world.told(c.Resume())
    assert not world.kept
    world.told(c.Pause())
    assert not world.kept
    world.kill_daemon()
    world.start_daemon()
    world.until(lambda: world.settled > held)


def test_a_hold_can_be_there_before_any_group() -> None:
    world = Commanded(seed=3, shape=WIDE)
    assert "no worker" in world.refused(c.Force())
    world.told(c.Freeze())
    world.run(3000)
    assert world.settled == 0
    assert world.node is not None
    assert world.node.balancers["sim"].held == "frozen by alice: a test"


# --- force --------------------------------------------------------------------------------------


def test_a_forced_plan_needs_no_reason() -> None:
    world = led(settings=CALM)
    mark = len(world.effects)
    world.run(1000)
    assert not world.asks(mark)
    assert world.told(c.Force()) == (
        "policy incremental is asked now; what it answers is taken whatever it gains"
    )
    world.until(lambda: bool(world.ended(mark)))
    assert [ended.outcome for ended in world.ended(mark)] == ["applied"]
    assert len(world.asks(mark)) == 1


def test_a_plan_cannot_be_forced_where_no_policy_may_be_asked() -> None:
    world = led(settings=CALM)
    world.told(c.Pause())
    assert "paused by alice" in world.refused(c.Force())
    world.told(c.Resume())
    assert world.node is not None
    while not world.node.questions.breaker.suspended:
        world.node.questions.breaker.failed()
    assert "is suspended" in world.refused(c.Force())
    hold = Commanded(seed=2, settings=replace(QUICK, balance=replace(QUICK.balance, mode="hold")))
    hold.ready()
    assert "balance.mode is hold" in hold.refused(c.Force())
    cold = replace(CALM, balance=replace(CALM.balance, min_steps=16, window_steps=16))
    fresh = Commanded(seed=2, settings=cold)
    fresh.until(lambda: bool(fresh.notes("group ready")))
    assert "a plan needs 16" in fresh.refused(c.Force())


# --- rollback and load --------------------------------------------------------------------------


def test_a_rollback_returns_to_before_the_last_rebalance_and_stays() -> None:
    world = led(settings=CALM)
    first = world.placement()
    assert "nothing was rebalanced" in world.refused(c.GoTo("", "rollback", ""))
    mark = len(world.effects)
    world.told(c.Force())
    world.until(lambda: bool(world.ended(mark)))
    second = world.placement()
    assert align(first, second) != first
    (kept,) = [e for e in world.effects[mark:] if isinstance(e, c.Keep)]
    assert (kept.name, kept.placement, kept.request) == ("previous", first, 0)
    mark = len(world.effects)
    assert "the policy is paused" in world.told(c.GoTo("", "rollback", ""))
    world.until(lambda: bool(world.ended(mark)))
    (ended,) = world.ended(mark)
    assert (ended.policy, ended.outcome) == ("rollback", "applied")
    assert align(first, world.placement()) == first
    assert {e.policy for e in world.effects[mark:] if isinstance(e, EpochEnded)} == {"rollback"}
    assert "paused by alice: it went to the placement before by order" in world.refused(c.Force())
    again = len(world.effects)
    world.told(c.GoTo("", "rollback", ""))
    world.until(lambda: bool(world.ended(again)))
    assert align(second, world.placement()) == second, "what was undone can be done again"


def test_a_rollback_interrupts_what_a_policy_wants() -> None:
    world = Commanded(seed=8, shape=Shape(layers=6, ranks=4))
    assert world.node is not None
    world.until(lambda: world.settled > 4)
    balancer = world.node.balancers["sim"]
    world.until(lambda: balancer.cycle is not None and balancer.cycle.stage is Stage.MOVING)
    wanted = somewhere(77, world.shape)
    mark = len(world.effects)
    world.told(c.GoTo("", "load", "seventy", wanted))
    world.until(lambda: any(e.policy == "load" for e in world.ended(mark)))
    assert align(wanted, world.placement()) == wanted
    assert {e.policy for e in world.ended(mark)} == {"load", "incremental"}


def test_after_a_restart_the_kept_placement_is_gone_back_to() -> None:
    world = led(settings=CALM)
    world.kill_daemon()
    world.start_daemon()
    world.ready()
    wanted = somewhere(5, WIDE)
    mark = len(world.effects)
    world.told(c.GoTo("", "rollback", "", spare=wanted))
    world.until(lambda: bool(world.ended(mark)))
    assert align(wanted, world.placement()) == wanted


def test_a_placement_of_another_group_is_refused() -> None:
    world = led()
    answer = world.refused(c.GoTo("", "load", "old", somewhere(1, Shape(layers=3, ranks=4))))
    assert answer.startswith("old: layer 2: the map has shape [3, 4, 3], expected [2, 4, 3]")
    assert "no group 'x'" in world.refused(c.GoTo("x", "load", "old", somewhere(1, WIDE)))


def test_nothing_goes_anywhere_while_frozen_or_incomplete() -> None:
    world = led()
    world.told(c.Freeze())
    for command in (c.Force(), c.GoTo("", "load", "a", somewhere(1, WIDE)), c.Drain(1)):
        assert "frozen by alice: a test; pause lets orders through" in world.refused(command)
    world.told(c.Pause())
    world.told(c.GoTo("", "load", "a", somewhere(1, WIDE)))
    world.told(c.Resume())
    assert world.node is not None
    world.node.balancers["sim"].group.lost(2, "cut off")
    assert "ranks [2] are missing" in world.refused(c.Force())
    world.node.balancers["sim"].group.freeze("ranks hold different maps")
    assert "froze by itself: ranks hold different maps" in world.refused(c.Force())
    assert "which no order lifts" in world.refused(c.Resume())


# --- looking and keeping ------------------------------------------------------------------------


def test_heat_is_handed_out_and_a_placement_kept() -> None:
    world = led(settings=CALM)
    answer = world.say(c.DumpHeat())
    assert isinstance(answer, c.Answer)
    assert answer.dump is not None
    assert answer.dump.heat.steps.shape[1:] == (2, 5)
    assert answer.dump.last_forward - answer.dump.first_forward >= len(answer.dump.heat.steps) - 1
    kept = world.say(c.Save("monday"))
    assert isinstance(kept, c.Keep)
    assert (kept.group, kept.name, kept.placement) == ("sim", "monday", world.placement())
    cold = Commanded(seed=1, settings=CALM)
    assert "no worker" in cold.refused(c.DumpHeat())
    assert "no worker" in cold.refused(c.Save("x"))
    cold.until(lambda: bool(cold.notes("group gathered")))
    assert "no heat" in cold.refused(c.DumpHeat())


# --- everything at once -------------------------------------------------------------------------


UNDO: list[c.Command] = [c.Resume()]
UNDO += [c.Undrain(rank) for rank in range(4)]
UNDO += [c.Unpin(expert) for expert in range(5)]


def any_command(chance: random.Random) -> c.Command:
    commands: list[c.Command] = [
        c.Pause(),
        c.Freeze(),
        c.Resume(),
        c.Force(),
        c.GoTo("", "rollback", ""),
        c.GoTo("", "load", "any", somewhere(chance.randrange(99), WIDE)),
        c.Pin(chance.randrange(5), chance.choice([None, 0, 1])),
        c.Unpin(chance.randrange(5)),
        c.Drain(chance.randrange(4)),
        c.Undrain(chance.randrange(4)),
    ]
    return chance.choice(commands)


@pytest.mark.parametrize("seed", range(10))
def test_commands_at_any_time_leave_the_group_sound(seed: int) -> None:
    """The world asserts, at every step, that maps agree and that slots hold what they should."""
    chance = random.Random(seed)
    world = Commanded(seed=seed, shape=WIDE, weighted=bool(seed % 2))
    for _ in range(12):
        world.run(chance.randrange(1, 150))
        if chance.random() < 0.3:
            inject(world, chance)
        if world.node is None:
            continue
        world.say(any_command(chance))
        if chance.random() < 0.2 and world.proposals:
            ask = world.proposals.popleft()
            world.feed(PolicyFailed(ask.request, "raised", "by chance"))
    if world.node is None:
        world.start_daemon()
    for command in UNDO:
        world.say(command)
    world.settle()
