"""Random: any shape, seeded by the question, within its budget."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplbd import Budget, Heat, Placement, Topology
from eplbd.core.placement import validate
from eplbd_policies.random import Random

HEAT = Heat(np.zeros((1, 2, 8), np.int32), "all")


def budget(moves: int | None = None, total_bytes: int | None = None) -> Budget:
    return Budget(moves, total_bytes, 5.0, 10)


def answer(
    current: Placement, allowed: Budget | None = None, seed: int = 0, ranks: int = 4
) -> Placement:
    topology = Topology.single_node(ranks, current.slots_per_rank)
    policy = Random(Random.Options(seed=seed))
    return policy.propose(HEAT, topology, current, allowed or budget())


@given(
    ranks=st.integers(1, 9),
    per_rank=st.integers(1, 8),
    spare=st.floats(0, 1),
    seed=st.integers(0, 1000),
    moves=st.none() | st.integers(0, 40),
)
def test_any_shape_is_served(
    ranks: int, per_rank: int, spare: float, seed: int, moves: int | None
) -> None:
    experts = per_rank + round((ranks - 1) * per_rank * spare)
    current = Placement.linear(2, experts, ranks, per_rank)
    proposal = answer(current, budget(moves), seed, ranks)
    topology = Topology.single_node(ranks, per_rank)
    validate(proposal.slots, experts=experts, topology=topology, layers=2)
    if moves is not None:
        assert proposal.moves_from(current).sum() <= moves


def test_the_same_question_has_the_same_answer_and_the_next_another() -> None:
    current = Placement.linear(2, 8, 4, 3)
    first = answer(current)
    assert answer(current) == first
    assert answer(current, seed=1) != first
    assert answer(first) not in (first, current)


def test_it_wanders_everywhere() -> None:
    current = Placement.linear(2, 8, 4, 3)
    visited = np.zeros((4, 8), np.bool_)
    for _ in range(40):
        current = answer(current)
        visited |= current.hosts()[0]
    assert visited.all()


def test_bytes_are_a_budget_too() -> None:
    current = Placement.linear(2, 8, 4, 3)
    assert answer(current, budget(total_bytes=19)) == current
    assert answer(current, budget(total_bytes=400)) != current


def test_more_slots_than_experts_is_nobodys_to_mend() -> None:
    current = Placement.linear(1, 4, 2, 6)
    assert answer(current, ranks=2) == current
