"""Modes and shadows in the simulated world: a whole group, its leader, and a schedule by chance."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from eplbd.core.events import (
    AskPolicy,
    CycleEnded,
    Effect,
    EpochEnded,
    Note,
    OpenRecord,
    PolicyAnswered,
    PolicyFailed,
    Reconfigured,
    RecordPlacement,
    RecordSteps,
    ShadowScored,
    Status,
)
from eplbd.core.placement import Placement
from eplbd.core.plan import align
from eplbd.core.settings import PolicySettings, RecordSettings, Settings
from tests.core.test_protocol import inject
from tests.seeds import sweep
from tests.sim.world import QUICK, Shape, World

LIMIT = 4000
T = TypeVar("T")


def moded(mode: str, wanted: Placement | None = None, shadow: tuple[str, ...] = ()) -> Settings:
    balance = replace(QUICK.balance, mode=mode)
    return replace(QUICK, balance=balance, map=wanted, policy=PolicySettings(shadow=shadow))


class Noted(World):
    """A world that keeps every effect, and answers shadows as it answers the active policy."""

    def __post_init__(self) -> None:
        self.effects: list[Effect] = []
        super().__post_init__()

    def perform(self, effect: Effect) -> None:
        self.effects.append(effect)
        super().perform(effect)

    def of(self, kind: type[T]) -> list[T]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def notes(self, event: str) -> list[Note]:
        return [note for note in self.of(Note) if note.event == event]

    def until(self, happened: Callable[[], bool]) -> None:
        for _ in range(LIMIT):
            if happened():
                return
            self.run(20)
        raise AssertionError(self.story())

    def placement(self) -> Placement:
        """In force on every rank."""
        assert len({me.agent.placement.digest for me in self.ranks}) == 1
        return self.ranks[0].agent.placement


def somewhere(seed: int, shape: Shape | None = None) -> Placement:
    """Any placement of the world's shape."""
    made = World(shape=shape or Shape(), seed=seed)
    rows = np.stack([made.shuffled() for _ in range(made.shape.layers)])
    return Placement(rows, made.shape.experts)


# --- static -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_static_map_is_reached_whatever_the_load_and_held(seed: int) -> None:
    wanted = somewhere(seed + 100)
    balance = replace(QUICK.balance, mode="static", par_trigger=1e9, min_steps=10**6)
    settings = replace(QUICK, balance=replace(balance, window_steps=10**6), map=wanted)
    world = Noted(seed=seed, settings=settings)
    world.until(lambda: bool(world.notes("static placement stands")))
    assert align(world.placement(), wanted) == world.placement(), "up to the order of slots"
    assert world.notes("static placement stands")[0].fields["epoch"] == world.settled
    settled = world.settled
    world.run(4000)
    assert world.settled == settled
    assert len(world.notes("static placement stands")) == 1
    assert not world.of(AskPolicy)
    (ended,) = world.of(CycleEnded)
    assert (ended.policy, ended.outcome) == ("static", "applied")


def test_a_restart_does_not_repeat_moves() -> None:
    world = Noted(seed=3, settings=moded("static", somewhere(8)))
    world.until(lambda: bool(world.notes("static placement stands")))
    settled = world.settled
    world.kill_daemon()
    world.start_daemon()
    world.until(lambda: len(world.notes("static placement stands")) == 2)
    assert world.settled == settled


@pytest.mark.parametrize("seed", range(12))
def test_a_static_map_is_reached_through_faults(seed: int) -> None:
    chance = random.Random(seed)
    world = Noted(seed=seed, settings=moded("static", somewhere(seed + 50)))
    for _ in range(4):
        world.run(chance.randrange(1, 200))
        inject(world, chance)
    for me in world.ranks:
        me.stopped = False
    world.dies_at = None
    mark = len(world.effects)
    world.kill_daemon()
    world.start_daemon()
    world.until(
        lambda: any(
            isinstance(effect, Note) and effect.event == "static placement stands"
            for effect in world.effects[mark:]
        )
    )


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(layers=3), r"layer 2: the map has shape \[3, 3, 3\], expected \[2, 3, 3\]"),
        (Shape(ranks=4), r"layer 0: the map has shape \[2, 4, 3\], expected \[2, 3, 3\]"),
        (Shape(experts=6), "layer 0: the map places 6 experts, expected 5"),
        (Shape(experts=4), "layer 0: the map places 4 experts, expected 5"),
    ],
)
def test_a_map_of_another_group_is_refused_and_nothing_moves(shape: Shape, words: str) -> None:
    world = Noted(settings=moded("static", somewhere(1, shape)))
    world.until(lambda: bool(world.notes("static placement refused")))
    world.run(3000)
    (refused,) = world.notes("static placement refused")
    assert refused.level == "error"
    assert re.search(words, str(refused.fields["reason"]))
    assert world.settled == 0


def test_another_map_is_gone_to_after_a_reload() -> None:
    world = Noted(seed=4, settings=moded("static", somewhere(8)))
    world.until(lambda: bool(world.notes("static placement stands")))
    wanted = somewhere(9)
    world.feed(Reconfigured(moded("static", wanted)))
    world.until(lambda: len(world.notes("static placement stands")) == 2)
    assert align(world.placement(), wanted) == world.placement()


def test_a_plan_of_another_mode_is_dropped_between_two_epochs() -> None:
    world = Noted(seed=5, shape=Shape(layers=6))
    assert world.node is not None
    world.until(lambda: world.settled > 0)
    balancer = world.node.balancers["sim"]
    world.until(world.midway)
    world.feed(Reconfigured(moded("hold")))
    world.until(lambda: balancer.group.leader is None)
    held = world.settled
    world.run(6000)
    assert world.settled == held
    assert world.of(CycleEnded)[-1].reason == "the mode was changed"


# --- record -------------------------------------------------------------------------------------


def test_record_mode_keeps_everything_and_moves_nothing() -> None:
    world = Noted(seed=6, settings=moded("record"))
    initial = world.placement()
    world.until(lambda: len(world.of(CycleEnded)) > 3 and len(world.of(RecordSteps)) > 50)
    assert world.settled == 0
    assert world.placement() == initial
    (opened,) = world.of(OpenRecord)
    assert (opened.layers, opened.experts, opened.topology.ranks) == (2, 5, 3)
    placements = world.of(RecordPlacement)
    assert (placements[0].status, placements[0].placement) == (Status.IN_FORCE, initial)
    outcomes = [ended.outcome for ended in world.of(CycleEnded)]
    assert set(outcomes) <= {"recorded", "unchanged"}
    proposed = [p for p in placements if p.status is Status.PROPOSED]
    assert len(proposed) == len(outcomes)
    assert {p.epoch for p in placements} == {0}
    forwards = [step.forward for record in world.of(RecordSteps) for step in record.steps]
    assert len(forwards) == len(set(forwards)) > 50


def test_beside_dynamic_every_step_has_the_placement_it_ran_under() -> None:
    world = Noted(seed=7, settings=replace(QUICK, record=RecordSettings(enabled=True)))
    world.until(lambda: world.settled > 3)
    known: set[int] = set()
    under: set[int] = set()
    for effect in world.effects:
        if isinstance(effect, RecordPlacement) and effect.status is not Status.PROPOSED:
            known.add(effect.epoch)
        if isinstance(effect, RecordSteps):
            under |= {step.epoch for step in effect.steps}
            assert under <= known, "told before the first of its steps"
    assert len(under) > 2


def test_recording_begins_and_ends_with_a_reload() -> None:
    world = Noted(seed=8)
    world.until(lambda: world.settled > 0)
    assert not world.of(OpenRecord)
    world.feed(Reconfigured(replace(QUICK, record=RecordSettings(enabled=True))))
    world.until(lambda: bool(world.of(RecordSteps)))
    assert len(world.of(OpenRecord)) == 1
    world.feed(Reconfigured(QUICK))
    world.run(40)
    mark = len(world.of(RecordSteps))
    world.run(1000)
    assert len(world.of(RecordSteps)) == mark


# --- shadows ------------------------------------------------------------------------------------

WATCHED = ("one", "two")


@pytest.mark.parametrize("mode", ["hold", "dynamic", "record"])
def test_shadows_are_scored_and_move_nothing(mode: str) -> None:
    world = Noted(seed=9, settings=moded(mode, shadow=WATCHED))
    moves = mode == "dynamic"
    world.until(lambda: len(world.of(ShadowScored)) > 12 and (world.settled > 0) >= moves)
    scored = world.of(ShadowScored)
    assert {score.policy for score in scored} == set(WATCHED)
    assert all(score.steps >= QUICK.balance.min_steps for score in scored)
    assert all(score.par_mean >= 1.0 for score in scored)
    assert {"applied"} <= {score.outcome for score in scored}
    assert (world.settled > 0) == moves
    epochs = [ended for ended in world.of(EpochEnded) if ended.policy in WATCHED]
    assert not epochs


def asked_together(effects: Sequence[Effect]) -> list[tuple[AskPolicy, list[AskPolicy]]]:
    """Each question to the active policy, and those to shadows before the next."""
    found: list[tuple[AskPolicy, list[AskPolicy]]] = []
    for ask in (effect for effect in effects if isinstance(effect, AskPolicy)):
        if not ask.shadow:
            found.append((ask, []))
        elif found:
            found[-1][1].append(ask)
    return found


def test_all_are_asked_on_the_heat_that_the_active_policy_is_asked_on() -> None:
    world = Noted(seed=10, settings=moded("dynamic", shadow=WATCHED))
    world.until(lambda: len(world.of(ShadowScored)) > 6)
    together = asked_together(world.effects)
    assert any(len(others) >= len(WATCHED) for _, others in together)
    for active, others in together:
        first = {ask.policy: ask for ask in reversed(others)}
        for ask in first.values():
            if np.shares_memory(ask.heat.steps, active.heat.steps):
                assert ask.heat.steps.shape == active.heat.steps.shape
                assert (ask.heat.steps == active.heat.steps).all()
    assert np.shares_memory(together[0][0].heat.steps, together[0][1][0].heat.steps)
    assert together[0][1][0].current == together[0][0].current, "it begins where the group is"


class OneFails(Noted):
    """The policy `one` fails whatever it is asked."""

    def answer_policy(self) -> None:
        ask = self.proposals[0]
        if ask.policy == "one":
            self.proposals.popleft()
            self.feed(PolicyFailed(ask.request, "crashed", "SIGSEGV"))
        else:
            super().answer_policy()


def test_a_shadow_that_fails_is_suspended_alone() -> None:
    world = OneFails(seed=11, settings=moded("dynamic", shadow=WATCHED))
    world.until(lambda: bool(world.notes("shadow suspended")))
    mark = len(world.effects)

    def later() -> set[str]:
        return {ask.policy for ask in world.effects[mark:] if isinstance(ask, AskPolicy)}

    world.until(lambda: later() >= {"two", QUICK.policy.name})
    world.run(2000)
    assert "one" not in later()
    (suspended,) = world.notes("shadow suspended")
    assert suspended.fields["policy"] == "one"
    assert len(world.notes("shadow failed")) == QUICK.policy.failures_until_suspended
    assert world.node is not None
    statistics = world.node.statistics()
    assert (statistics.suspended, statistics.shadows_suspended) == (False, ("one",))
    world.feed(Reconfigured(moded("dynamic", shadow=WATCHED), policies=True))
    world.until(lambda: any(ask.policy == "one" for ask in world.proposals))


class AllForget(Noted):
    """Every answer forgets all experts but one."""

    def answer_policy(self) -> None:
        ask = self.proposals.popleft()
        self.feed(PolicyAnswered(ask.request, np.zeros_like(ask.current.slots), 0.1))


def test_an_invalid_placement_is_the_shadows_fault() -> None:
    world = AllForget(seed=12, settings=moded("hold", shadow=("one",)))
    world.until(lambda: bool(world.notes("shadow suspended")))
    assert "in no slot" in str(world.notes("shadow failed")[0].fields["detail"])


def test_a_promoted_shadow_plans_from_what_is_in_force_and_nothing_is_lost() -> None:
    world = Noted(seed=13, settings=moded("hold", shadow=WATCHED))
    world.until(lambda: len(world.of(ShadowScored)) > 4)
    assert world.node is not None
    balancer = world.node.balancers["sim"]
    term, ledger, shadows = balancer.group.term, balancer.ledger, balancer.shadows
    assert shadows is not None
    two = shadows.members["two"]
    mark = len(world.effects)
    policy = PolicySettings(name="one", shadow=("two",))
    world.feed(Reconfigured(replace(QUICK, policy=policy)))
    before = world.placement()
    world.until(lambda: world.settled > 0)
    assert (balancer.group.term, balancer.ledger, balancer.shadows) == (term, ledger, shadows)
    assert shadows.members == {"two": two}
    active = [ask for ask in world.effects[mark:] if isinstance(ask, AskPolicy) and not ask.shadow]
    assert {ask.policy for ask in active} == {"one"}
    assert active[0].current == before
    assert world.of(EpochEnded)[0].policy == "one"


@pytest.mark.parametrize("seed", sweep(20))
def test_shadows_survive_what_the_group_does(seed: int) -> None:
    chance = random.Random(seed)
    settings = replace(moded("dynamic", shadow=WATCHED), record=RecordSettings(enabled=True))
    world = Noted(seed=seed, settings=settings)
    world.run(chance.randrange(50, 500))
    for _ in range(5):
        inject(world, chance)
        world.run(chance.randrange(1, 200))
    world.settle()
    mark = len(world.of(ShadowScored))
    world.until(lambda: len(world.of(ShadowScored)) > mark + 2)
