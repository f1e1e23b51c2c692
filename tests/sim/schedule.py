"""Schedules of faults, chosen by hypothesis, so that what fails is shrunk to what matters.

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


def look_for_faults(
    worlds: st.SearchStrategy[W],
    harm: Callable[[W, random.Random], object],
    steps: tuple[int, int],
    examples: int,
) -> None:
    """Fail with a schedule after which a world does not settle, or in which a law is broken.

    steps: how many at the most a world goes on for a while, and for long.
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

    run_state_machine_as_test(
        Faults,
        settings=settings(
            max_examples=min(examples, settings().max_examples),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
