"""Replicas: heat in common, moves by turns, and nothing else shared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core.balancer import Balancer
from eplbd.core.cycle import Stage
from eplbd.core.group import Phase
from eplbd.core.heat import Heat
from eplbd.core.replicas import alike, pooled, shares_heat, window
from tests.sim.pair import Pair
from tests.sim.world import QUICK, Shape

EPOCHS = 6


def heat(*steps: int) -> Heat:
    """Windows whose steps can be told apart."""
    return Heat(np.array(steps, dtype=np.int32).reshape(-1, 1, 1), "all")


def told(window: Heat) -> list[int]:
    return window.steps.ravel().tolist()


SHARING = replace(QUICK, balance=replace(QUICK.balance, share_heat=("*",)))
IN_TURN = replace(QUICK, balance=replace(QUICK.balance, rollout="one-at-a-time"))


@given(
    st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=4), st.integers(1, 9)
)
def test_the_newest_of_all_are_kept_and_each_groups_stay_in_order(
    windows: list[list[int]], most: int
) -> None:
    marked = [[100 * i + at for at in range(len(one))] for i, one in enumerate(windows)]
    own, *others = marked
    found = told(pooled(heat(*own), [heat(*other) for other in others], most))
    assert len(found) == min(most, sum(map(len, marked)))
    for one in marked:
        kept = [step for step in found if step in one]
        assert kept == one[len(one) - len(kept) :], "its newest, in order"
    counts = [sum(step in one for step in found) for one in marked]
    short = [count for count, one in zip(counts, marked, strict=True) if count < len(one)]
    assert all(count >= max(counts, default=0) - 1 for count in short), "as many of each"


def test_of_equally_old_steps_the_groups_own_comes_last() -> None:
    assert told(pooled(heat(1, 2), [heat(11, 12)], 9)) == [11, 1, 12, 2]
    assert told(pooled(heat(), [heat(11, 12)], 9)) == [11, 12]


@pytest.mark.parametrize(
    ("patterns", "shared"),
    [
        ((), False),
        (("*",), True),
        (("m-*",), True),
        (("m-decode-?",), False),
        (("*-prefill", "*-decode-*"), False),
        (("m-decode-*", "m-*-2"), False),
    ],
)
def test_groups_that_one_entry_names_share(patterns: tuple[str, ...], *, shared: bool) -> None:
    assert shares_heat(patterns, "m-decode-1", "m-prefill-2") is shared


def test_two_groups_have_ledgers_placements_and_paces_of_their_own() -> None:
    pair = Pair(second=Shape(ranks=2, slots_per_rank=4))
    pair.settle(EPOCHS)
    first, second = pair.balancers
    assert [other.group.name for other in alike(first)] == ["twin"]
    assert first.group.placement is not None
    assert second.group.placement is not None
    assert (first.group.placement.ranks, second.group.placement.ranks) == (3, 2)
    assert first.ledger is not second.ledger
    assert first.pacer is not second.pacer
    own = window(first)
    assert own.steps.shape[0] == len(first.served() or own.steps)


def test_a_shared_window_holds_steps_of_both_and_not_more() -> None:
    pair = Pair(SHARING, second=Shape(ranks=2, slots_per_rank=4))
    pair.settle(EPOCHS)
    for balancer in pair.balancers:
        other = next(alike(balancer))
        assert balancer.ledger is not None
        assert other.ledger is not None
        sizes = [len(each.heat().steps) for each in (balancer.ledger, other.ledger)]
        assert len(window(balancer).steps) == min(sum(sizes), QUICK.balance.window_steps)


def test_other_models_share_nothing() -> None:
    pair = Pair(SHARING, second=Shape(experts=6))
    pair.settle(2)
    for balancer in pair.balancers:
        assert list(alike(balancer)) == []
        assert balancer.ledger is not None
        assert len(window(balancer).steps) == len(balancer.ledger.heat().steps)


def moving(balancer: Balancer) -> bool:
    """Whether a rebalance has begun, and can go on or ends an epoch."""
    cycle, group = balancer.cycle, balancer.group
    begun = cycle is not None and cycle.stage is Stage.MOVING and cycle.tally.settled
    return bool(group.leader or (begun and group.phase is Phase.READY))


@pytest.mark.parametrize("seed", range(3))
def test_one_at_a_time(seed: int) -> None:
    pair = Pair(IN_TURN, seed=seed)
    both = []

    def look() -> None:
        both.append(sum(map(moving, pair.balancers)) > 1)

    pair.look = look
    pair.settle(EPOCHS)
    assert not any(both)


def test_together_they_overlap() -> None:
    """What the test above would see if nothing held them apart."""
    pair = Pair()
    both = []

    def look() -> None:
        both.append(sum(map(moving, pair.balancers)) > 1)

    pair.look = look
    pair.settle(EPOCHS)
    assert any(both)


def test_a_group_that_lost_a_rank_holds_nobody_up() -> None:
    pair = Pair(IN_TURN)
    pair.settle(1)
    first, second = pair.worlds.values()
    for _ in range(20_000):
        if moving(pair.balancers[0]):
            break
        pair.run(1)
    assert moving(pair.balancers[0])
    first.ranks[0].stopped = True
    before = second.settled
    for _ in range(40_000):
        if second.settled > before + 2:
            break
        pair.run(1)
    assert second.settled > before + 2
