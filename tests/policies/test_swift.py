"""Swift: few transfers, between few ranks, along short links, most useful first."""

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Topology, par, rank_load
from eplbd_policies.swift import Swift, balance
from tests.policies.asked import FREE, ask, counts, moved, start

NODES = tuple(rank // 4 for rank in range(16))


def swift(**options: object) -> Swift:
    return Swift(msgspec.convert(options, Swift.Options))


def propose(
    policy: Swift, steps: NDArray[np.int32], current: Placement, budget: Budget = FREE
) -> Placement:
    """As `ask`, on four nodes."""
    topology = Topology(current.ranks, current.slots_per_rank, NODES)
    return policy.propose(Heat(steps, "all"), topology, current, budget)


def peaks(placement: Placement, steps: NDArray[np.int32]) -> NDArray[np.float64]:
    return par(rank_load(placement, steps.sum(0)))


def gained(current: Placement, answer: Placement) -> NDArray[np.bool_]:
    """`[layers, ranks, experts]`, what each rank receives."""
    return answer.hosts() & ~current.hosts()


def test_few_moves_balance_nearly_everything() -> None:
    steps, current = counts(8, 64), start(8, 64, 16, 5)
    answer = ask(swift(), steps, current)
    assert peaks(current, steps).mean() > 1.8
    assert peaks(answer, steps).max() < 1.06
    assert moved(current, answer) < 0.4 * 16 * 5


def test_a_rank_receives_no_more_than_allowed() -> None:
    steps, current = counts(8, 64, sigma=1.5), start(8, 64, 16, 5)
    for most in (1, 2):
        received = gained(current, ask(swift(receives=most), steps, current)).sum(2)
        assert received.max() == most


def test_at_most_one_expert_travels_between_two_ranks() -> None:
    """Senders can be chosen so: no expert of what a rank gained shares its only pair."""
    steps, current = counts(4, 32, sigma=1.5), start(4, 32, 4, 9)
    answer = ask(swift(receives=9), steps, current)
    received = gained(current, answer).sum((1, 2))
    assert (received <= 2 * 6).all()  # six pairs; an exchange uses one for both directions
    assert received.max() > 2


def test_balanced_layers_are_left_alone() -> None:
    steps, current = counts(6, 64), start(6, 64, 16, 5)
    placed = ask(swift(), steps, current)
    hot = np.concatenate([placed.slots[:5], current.slots[5:]])
    answer = ask(swift(), steps, Placement(hot, 64))
    assert (answer.slots[:5] == hot[:5]).all()
    assert (answer.slots[5] != hot[5]).any()


def test_within_nodes_nothing_crosses_the_network() -> None:
    steps, current = counts(6, 64), start(6, 64, 16, 5)
    answer = propose(swift(inter_node=False), steps, current)
    nodes = np.asarray(NODES)
    held = np.stack([current.hosts()[:, nodes == node].any(1) for node in range(4)], axis=1)
    assert not (gained(current, answer) & ~held[:, nodes]).any()
    assert (peaks(answer, steps) < peaks(current, steps)).any()


def test_a_dear_network_is_used_less() -> None:
    steps, current = counts(12, 64), start(12, 64, 16, 5)
    nodes = np.asarray(NODES)
    held = np.stack([current.hosts()[:, nodes == node].any(1) for node in range(4)], axis=1)
    crossing = [
        int((gained(current, propose(swift(network=cost), steps, current)) & ~held[:, nodes]).sum())
        for cost in (1.0, 8.0)
    ]
    assert crossing[1] < crossing[0]


@pytest.mark.parametrize("moves", [1, 2, 7, 40])
def test_a_budget_goes_where_it_relieves_most(moves: int) -> None:
    steps, current = counts(6, 64), start(6, 64, 16, 5)
    steps[:, 3] *= 50
    answer = propose(swift(), steps, current, Budget(moves, None, 10.0, 1000))
    made = gained(current, answer).sum((1, 2))
    assert 0 < made.sum() <= moves
    assert made[3] > 0
    same = propose(swift(), steps, current, Budget(None, moves * 1000, 10.0, 1000))
    assert answer == same


def test_no_shape_compiles_again() -> None:
    swift()
    before = len(balance.signatures), dict(balance.stats.cache_misses)
    for layers, experts, ranks, slots in [(1, 8, 4, 3), (3, 30, 7, 5), (2, 4, 1, 4)]:
        ask(
            swift(receives=1, threshold=1.0),
            counts(layers, experts),
            start(layers, experts, ranks, slots),
        )
        ask(
            swift(inter_node=False),
            counts(layers, experts, 0),
            start(layers, experts, ranks, slots),
        )
    assert (len(balance.signatures), dict(balance.stats.cache_misses)) == before
    assert before[0] == 1
