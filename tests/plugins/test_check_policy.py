"""The conformance kit: our own policies pass it, and each law catches a policy that breaks it."""

import time
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from eplbd import Budget, Heat, Placement, Policy, PolicyError, Topology
from eplbd.hold import Hold
from eplbd.testing import check_policy, problems
from eplbd_example_policy import Example
from eplbd_policies.greedy import Greedy
from eplbd_policies.random import Random


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (Hold, {}),
        (Example, {}),
        (Random, {}),
        (Random, {"seed": 7}),
        (Greedy, {}),
        (Greedy, {"hierarchical": False, "min_gain": 0.0}),
    ],
)
def test_our_policies_pass(policy: type[Policy], options: dict[str, object]) -> None:
    check_policy(policy, options)


class Keeps:
    """What the offenders below change one thing of."""

    name: ClassVar[str] = "keeps"
    eplbd_api = 1

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        return current


class Forgets(Keeps):
    """Drops expert 0 for a copy of another one."""

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        return Placement(np.maximum(current.slots, 1), current.experts)


class Doubles(Keeps):
    """An expert twice on a rank where there is room for that."""

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        slots = current.slots.copy()
        spare = current.replicas()[0, slots[0, -1, -1]] > 1
        if spare and current.slots_per_rank > 1:
            slots[0, -1, -1] = slots[0, -1, 0]
        return Placement(slots, current.experts)


class Shrinks(Keeps):
    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        return Placement(current.slots[:, :, 1:], current.experts)


class Invents(Keeps):
    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        return Placement(current.slots, current.experts + 1)


class Spends(Keeps):
    """Ignores the budget."""

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        return Placement(current.slots[:, ::-1], current.experts)


class Alternates(Keeps):
    """Another answer every other time."""

    def __init__(self) -> None:
        self.asked = 0

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        self.asked += 1
        slots = current.slots[:, :, :: 1 if self.asked % 2 else -1]
        return Placement(slots, current.experts)


class Numbered(Keeps):
    """Another answer from every other instance."""

    made = 0

    def __init__(self) -> None:
        Numbered.made += 1
        self.number = Numbered.made

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        return Placement(current.slots[:, :, :: 1 if self.number % 2 else -1], current.experts)


class Overwrites(Keeps):
    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        heat.steps.setflags(write=True)
        heat.steps[:] = 0
        return current


class Returns(Keeps):
    def propose(  # type: ignore[override]
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> object:
        return current.slots


class Dawdles(Keeps):
    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        time.sleep(0.02)
        return current


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (Forgets, "holds expert 0 in no slot"),
        (Doubles, "expected distinct experts on a rank"),
        (Shrinks, "expected .2, 4, 3."),
        (Invents, "says 9 experts, expected 8"),
        (Spends, "no moves allowed: needs .* moves, allowed are 0"),
        (Alternates, "the second answer differs"),
        (Numbered, "a fresh instance answers differently"),
        (Overwrites, "small: changed its inputs"),
        (Returns, "small: returned ndarray, expected eplbd.Placement"),
        (Dawdles, "small: took 0.0.* s, allowed are 0.001"),
    ],
)
def test_each_law_catches_its_offender(policy: type[Policy], sentence: str) -> None:
    deadline_s = 0.001 if policy is Dawdles else 5.0
    with pytest.raises(AssertionError, match=sentence):
        check_policy(policy, deadline_s=deadline_s, large=False)


def test_options_are_the_policys_own() -> None:
    with pytest.raises(AssertionError, match="Hold declares no Options"):
        check_policy(Hold, {"seed": 1})
    with pytest.raises(msgspec.ValidationError, match="unknown field `sed`"):
        check_policy(Random, {"sed": 1})


def test_the_form_of_the_class_is_checked() -> None:
    class Shouting(Keeps):
        name = "KEEPS"

    with pytest.raises(PolicyError, match="lower case letters, digits and dashes"):
        check_policy(Shouting)


def test_problems_are_well_formed_and_repeatable() -> None:
    for first, second in zip(problems(large=False), problems(large=False), strict=True):
        layers, experts = first.heat.steps.shape[1:]
        assert first.current.slots.shape == (
            layers,
            first.topology.ranks,
            first.topology.slots_per_rank,
        )
        assert first.current.experts == experts
        assert not first.heat.steps.flags.writeable
        assert np.array_equal(first.heat.steps, second.heat.steps)
