"""The conformance kit: our own policies pass it, and each law catches a policy that breaks it."""

import time
from itertools import combinations
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from eplbd import (
    Budget,
    Heat,
    Placement,
    Policy,
    PolicyError,
    Topology,
    even_shares,
    rank_load,
)
from eplbd.core.placement import validate
from eplbd.hold import Hold
from eplbd.testing import LAWS, check_policy, problems
from eplbd_example_policy import Example
from eplbd_policies.greedy import Greedy
from eplbd_policies.random import Random


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (Hold, {}),
        (Example, {}),
        (Random, {}),
        pytest.param(Random, {"seed": 7}, marks=pytest.mark.slow),
        pytest.param(Greedy, {}, marks=pytest.mark.slow),
        pytest.param(Greedy, {"hierarchical": False, "min_gain": 0.0}, marks=pytest.mark.slow),
    ],
)
def test_our_policies_pass(policy: type[Policy], options: dict[str, object]) -> None:
    check_policy(policy, options, balances=policy is not Random)


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


class Raises(Keeps):
    """Divides by the heat."""

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        if not heat.total.any():
            raise ZeroDivisionError("no heat")
        return current


class Remembers(Keeps):
    """Goes by the window of the last time as well."""

    def __init__(self) -> None:
        self.seen = 0

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        before, self.seen = self.seen, len(heat.steps)
        return Placement(current.slots[:, :, :: -1 if before == 1 else 1], current.experts)


class Worsens(Keeps):
    """Exchanges two experts so that the hottest rank is as hot as it can be."""

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        if budget.moves is not None or budget.bytes is not None or not heat.total.any():
            return current
        return max(exchanges(current), key=lambda one: float(rank_load(one, heat.total).max()))


class Wastes(Keeps):
    """Passes everything on to the next rank."""

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        if budget.moves is not None or budget.bytes is not None:
            return current
        return Placement(np.roll(current.slots, 1, axis=1), current.experts)


class Splits(Keeps):
    """Gives shares to whoever asks."""

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        shares = even_shares(current)
        expert = int(current.replicas()[0].argmax())
        own = np.flatnonzero(current.slots[0] == expert)
        shares[0].flat[own] = np.arange(len(own)) == 0
        return Placement(current.slots, current.experts, shares)


class Overdoes(Keeps):
    """Gives every slot the whole of its expert."""

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        shares = np.ones_like(even_shares(current)) if budget.weighted else None
        return Placement(current.slots, current.experts, shares)


class Weighs(Keeps):
    """Keeps the contract, and would not where there are no shares."""

    needs = frozenset({"shares"})

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        assert budget.weighted
        return Placement(current.slots, current.experts, current.shares)


class Minds(Keeps):
    """Exchanges two experts so that the slowest rank is done soonest, where ranks are unlike."""

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        speed = np.array(topology.speed)
        if (speed == speed[0]).all() or budget.moves is not None or budget.bytes is not None:
            return current
        tried = exchanges(current) if current.shares is None else [current]
        return min(tried, key=lambda one: float((rank_load(one, heat.total) / speed).max()))


def exchanges(current: Placement) -> list[Placement]:
    """Every placement that differs by two slots of the first layer, and `current` itself."""
    row = current.slots[0].ravel()
    found = [current]
    for a, b in combinations(range(row.size), 2):
        slots = current.slots.copy()
        slots[0].flat[[a, b]] = row[[b, a]]
        other = Placement(slots, current.experts)
        if not other.has_duplicates:
            found.append(other)
    return found


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


OFFENDERS = [
    (Forgets, "placement", "holds expert 0 in no slot"),
    (Doubles, "placement", "expected distinct experts on a rank"),
    (Shrinks, "placement", "expected .2, 4, 3."),
    (Invents, "answer", "says 9 experts, expected 8"),
    (Returns, "answer", "returned ndarray, expected eplbd.Placement"),
    (Raises, "answer", "raised ZeroDivisionError: no heat"),
    (Spends, "budget", "needs .* moves, allowed are 0"),
    (Alternates, "repeatable", "the second answer differs"),
    (Remembers, "repeatable", "the second answer differs"),
    (Numbered, "fresh", "a fresh instance answers differently"),
    (Overwrites, "inputs", "changed its inputs"),
    (Dawdles, "deadline", "took 0.0.* s, allowed are 0.001"),
    (Worsens, "gain", "makes it worse: PAR"),
    (Wastes, "gain", "moves .* experts and gains nothing: PAR"),
    (Splits, "shares", "gives shares, but the engine takes none"),
    (Overdoes, "shares", "layer 0, expert 0: .* sum to 2"),
]


@pytest.mark.parametrize(("policy", "law", "sentence"), OFFENDERS)
def test_each_law_catches_its_offender(policy: type[Policy], law: str, sentence: str) -> None:
    deadline_s = 0.001 if policy is Dawdles else 30.0
    with pytest.raises(AssertionError, match=rf"^[^\[]+ \[{law}\]: .*{sentence}"):
        check_policy(policy, deadline_s=deadline_s, large=False, balances=law == "gain")


def test_every_law_has_its_offender() -> None:
    assert {law for _, law, _ in OFFENDERS} == set(LAWS)


def test_a_law_says_which_problem_it_was() -> None:
    with pytest.raises(AssertionError, match=r"^small, no heat \[answer\]: "):
        check_policy(Raises, large=False)
    with pytest.raises(AssertionError, match=r"^small, weighted \[shares\]: "):
        check_policy(Overdoes, large=False)


def test_a_policy_that_needs_shares_is_asked_where_there_are_some() -> None:
    check_policy(Weighs, large=False)


def test_a_policy_may_go_by_what_ranks_of_unequal_speed_take() -> None:
    """Though their loads become less even by that."""
    check_policy(Minds, large=False)
    uneven = 0
    for problem in problems(large=False):
        asked = problem.heat, problem.topology, problem.current, problem.budget
        answer = Minds().propose(*asked)
        was, now = (rank_load(one, problem.heat.total) for one in (problem.current, answer))
        uneven += bool((now.max(-1) > was.max(-1)).any())
    assert uneven > 0


def test_there_is_a_question_without_a_rank_of_the_group() -> None:
    """As a policy sees a group whose engine masks a rank: fewer ranks, on nodes of unequal size."""
    masked = [problem for problem in problems(large=False) if "masked" in problem.name]
    assert {problem.topology.node_of for problem in masked} == {(0, 0, 1, 1, 1)}
    assert {len(set(problem.topology.speed)) for problem in masked} == {1, 2}


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
    names = [problem.name for problem in problems()]
    assert len(set(names)) == len(names)
    for first, second in zip(problems(large=False), problems(large=False), strict=True):
        layers, experts = first.heat.steps.shape[1:]
        assert first.current.slots.shape == (
            layers,
            first.topology.ranks,
            first.topology.slots_per_rank,
        )
        assert first.current.experts == experts
        assert not first.heat.steps.flags.writeable
        assert (first.heat.steps >= 0).all()
        validate(
            first.current.slots,
            experts=experts,
            topology=first.topology,
            layers=layers,
            allow_duplicates=True,
            shares=first.current.shares,
        )
        assert np.array_equal(first.heat.steps, second.heat.steps)
