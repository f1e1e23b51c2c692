"""Shadows of a live group: they are asked as the active policy is, under the same orders."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eplbd.core import commands as c
from eplbd.core.events import AskPolicy, ShadowScored
from eplbd.core.settings import PolicySettings
from tests.sim.commanded import TIGHT, Commanded, led
from tests.sim.world import QUICK

WATCHED = replace(QUICK, policy=PolicySettings(shadow=("other",)))


def asks(world: Commanded, mark: int) -> tuple[list[AskPolicy], list[AskPolicy]]:
    """Questions since `mark`, to the active policy and to the shadow."""
    asked = [effect for effect in world.effects[mark:] if isinstance(effect, AskPolicy)]
    return [ask for ask in asked if not ask.shadow], [ask for ask in asked if ask.shadow]


def scores(world: Commanded, mark: int) -> list[ShadowScored]:
    return [effect for effect in world.effects[mark:] if isinstance(effect, ShadowScored)]


@pytest.mark.parametrize("seed", range(3))
def test_no_shadow_is_shown_a_drained_rank(seed: int) -> None:
    """With one redundant slot left, whatever a shadow had planned before cannot spare the rank."""
    world = led(seed=seed, shape=TIGHT, settings=WATCHED)
    mark = len(world.effects)
    world.until(lambda: len(asks(world, mark)[1]) > 1)
    assert {ask.topology.ranks for ask in asks(world, mark)[1]} == {4}
    world.told(c.Drain(1))
    mark = len(world.effects)
    world.until(lambda: all(len(asked) > 1 for asked in asks(world, mark)))
    world.until(lambda: len(scores(world, mark)) > 1)
    active, beside = asks(world, mark)
    assert {ask.topology for ask in beside} == {ask.topology for ask in active}
    for ask in beside:
        assert ask.current.ranks == ask.topology.ranks == 3
        assert ask.current.hosts().any(axis=1).all(), "every expert is on some rank that is shown"
    assert {score.outcome for score in scores(world, mark)} <= {"applied", "refused", "rested"}
    world.told(c.Undrain(1))
    mark = len(world.effects)
    world.until(lambda: any(ask.topology.ranks == 4 for ask in asks(world, mark)[1]))


def test_a_shadow_that_is_not_watched_any_more_is_not_asked() -> None:
    world = led(settings=WATCHED)
    world.until(lambda: bool(asks(world, 0)[1]))
    assert world.node is not None
    world.node.questions.shadow_breakers.clear()
    world.run(50)
    mark = len(world.effects)
    world.until(lambda: len(asks(world, mark)[0]) > 1)
    assert not asks(world, mark)[1]
