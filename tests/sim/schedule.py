"""Schedules of faults: by a seed, or by hypothesis, which shrinks what fails to what matters.

Owns what may happen and how often. Must not know what a harm is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.sim.world import World

W = TypeVar("W", bound=World)

FAULT_BUDGET = 6
"""Faults of one schedule: where they are as likely as progress, none strikes where it matters."""


def survive(
    world: W,
    harm: Callable[[W, random.Random], object],
    chance: random.Random,
    before: tuple[int, int],
    between: int,
) -> None:
    """Let a world go on, harm it, and so on; then it must settle.

    before: of steps ahead of the first harm, the fewest and one more than the most. between: one
    more than the most that follow each.
    """
    world.run(chance.randrange(*before))
    for _ in range(FAULT_BUDGET):
        harm(world, chance)
        world.run(chance.randrange(1, between))
    world.settle()


def look_for_faults(
    worlds: st.SearchStrategy[W],
    harm: Callable[[W, random.Random], object],
    steps: tuple[int, int],
    examples: int,
) -> None:
    """Fail with a schedule after which a world does not settle, or in which a law is broken.

    steps: how far a world goes on at the most, for a while and for long.
    """
    few, many = steps

    class Faults(RuleBasedStateMachine):
        @initialize(world=worlds)
        def begin(self, world: W) -> None:
            self.world = world
            self.budget = FAULT_BUDGET

        @rule(steps=st.integers(1, few))
        def go_on(self, steps: int) -> None:
            self.world.run(steps)

        @rule(steps=st.integers(few, many))
        def go_on_for_long(self, steps: int) -> None:
            self.world.run(steps)

        @precondition(lambda self: self.budget > 0)
        @rule(seed=st.integers(0, 2**16))
        def harm(self, seed: int) -> None:
            self.budget -= 1
            harm(self.world, random.Random(seed))

        @rule(rounds=st.integers(1, 8))
        def time_passes(self, rounds: int) -> None:
            for _ in range(rounds):
                self.world.tick()

        def teardown(self) -> None:
            if hasattr(self, "world"):
                self.world.settle()

    most = settings(
        max_examples=min(examples, settings().max_examples),
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Faults, settings=most)
