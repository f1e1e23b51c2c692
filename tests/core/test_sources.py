"""Senders: near ones first, none of them hot, trees where one expert goes to many."""

from __future__ import annotations

from collections import Counter
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core.placement import Placement
from eplbd.core.rounds import Col, Transfers, colour
from eplbd.core.sources import assign_sources
from eplbd.core.topology import Topology
from eplbd.errors import PlacementError

Want = tuple[int, int]
"""Expert, rank that wants it."""


def table(wants: list[Want]) -> Transfers:
    used = Counter[int]()
    rows = np.full((len(wants), len(Col)), -1, dtype=np.int32)
    for row, (expert, dst) in enumerate(wants):
        rows[row, Col.LAYER :] = (0, expert, -1, -1, -1, dst, used[dst], used[dst])
        used[dst] += 1
    return rows


def base(holders: list[set[int]], ranks: int) -> Placement:
    """Expert e is held by `holders[e]`; what is left of the slots holds one more expert."""
    filler = len(holders)
    slots = [[e for e, held in enumerate(holders) if rank in held] for rank in range(ranks)]
    width = max(map(len, slots)) + 1
    padded = [row + [filler] * (width - len(row)) for row in slots]
    return Placement(np.array([padded], dtype=np.int32), filler + 1)


def sends(transfers: Transfers) -> Counter[int]:
    return Counter(row[Col.SRC] for row in transfers.tolist() if row[Col.SRC] != row[Col.DST])


def of(transfers: Transfers, expert: int) -> dict[int, int]:
    """DST -> SRC."""
    return {row[Col.DST]: row[Col.SRC] for row in transfers.tolist() if row[Col.EXPERT] == expert}


def least_busiest(choices: list[list[int]]) -> int:
    """Fewest sends of the busiest rank, over all ways to choose one rank from each list."""
    limit = 0
    taken: dict[int, list[int]] = {}

    def give(want: int, seen: set[int]) -> bool:
        for rank in choices[want]:
            if rank not in seen:
                seen.add(rank)
                held = taken.setdefault(rank, [])
                if len(held) < limit:
                    held.append(want)
                    return True
                for i, other in enumerate(held):
                    if give(other, seen):
                        held[i] = want
                        return True
        return False

    for want in range(len(choices)):
        while not give(want, set()):
            limit += 1
    return limit


@given(st.data())
def test_no_rank_sends_more_than_it_must(data: st.DataObject) -> None:
    """Against every choice there is, unless that costs no round: a rank receives as often."""
    ranks = data.draw(st.integers(2, 10))
    some = st.sets(st.integers(0, ranks - 1), min_size=1, max_size=3)
    holders = data.draw(st.lists(some, min_size=1, max_size=16))
    wants: list[Want] = []
    for expert, held in enumerate(holders):
        homes = data.draw(st.sets(st.integers(0, ranks - 1), max_size=len(held)))
        wants += [(expert, home) for home in sorted(homes - held)]
    placement = base(holders, ranks)
    topology = Topology.single_node(ranks, placement.slots_per_rank)
    assigned = assign_sources(table(wants), placement, topology)
    busiest = max(sends(assigned).values(), default=0)
    best = least_busiest([sorted(holders[expert]) for expert, _ in wants])
    received = max(Counter(home for _, home in wants).values(), default=0)
    assert busiest <= max(best, received)
    for row in assigned.tolist():
        assert placement.slots[0, row[Col.SRC], row[Col.SRC_SLOT]] == row[Col.EXPERT]


@given(st.data())
def test_an_expert_crosses_to_a_node_once_and_only_where_it_is_lacking(data: st.DataObject) -> None:
    ranks = data.draw(st.integers(2, 12))
    some = st.sets(st.integers(0, ranks - 1), min_size=1, max_size=4)
    holders = data.draw(st.lists(some, min_size=1, max_size=8))
    homes = data.draw(st.lists(some, min_size=len(holders), max_size=len(holders)))
    wants = [(expert, home) for expert, its in enumerate(homes) for home in sorted(its)]
    nodes = data.draw(st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks))
    placement = base(holders, ranks)
    topology = Topology(ranks, placement.slots_per_rank, tuple(nodes))
    assigned = colour(assign_sources(table(wants), placement, topology), node_of=nodes)
    entered = Counter(
        (row[Col.EXPERT], nodes[row[Col.DST]])
        for row in assigned.tolist()
        if nodes[row[Col.SRC]] != nodes[row[Col.DST]]
    )
    lacking = {
        (expert, nodes[home])
        for expert, home in wants
        if nodes[home] not in {nodes[rank] for rank in holders[expert]}
    }
    assert entered == Counter(lacking)
    assert len(assigned) == len(wants)


def doublings(homes: int, holders: int) -> int:
    return ceil(log2((homes + holders) / holders) - 1e-9)


@given(st.integers(1, 40), st.integers(1, 5))
def test_many_homes_are_reached_by_doubling(homes: int, holders: int) -> None:
    ranks = homes + holders
    placement = base([set(range(holders))], ranks)
    topology = Topology.single_node(ranks, placement.slots_per_rank)
    wants = [(0, home) for home in range(holders, ranks)]
    transfers = colour(assign_sources(table(wants), placement, topology))
    assert int(transfers[-1, Col.ROUND]) + 1 == doublings(homes, holders)


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 4))
def test_other_nodes_are_reached_by_doubling_and_then_from_within(
    nodes: int, size: int, holders: int
) -> None:
    """Holders, the first ranks of node 0, serve all others of all nodes."""
    holders, ranks = min(holders, size), nodes * size
    placement = base([set(range(holders))], ranks)
    node_of = tuple(rank // size for rank in range(ranks))
    topology = Topology(ranks, placement.slots_per_rank, node_of)
    wants = [(0, home) for home in range(holders, ranks)]
    if not wants:
        return
    transfers = colour(assign_sources(table(wants), placement, topology))
    rounds = int(transfers[-1, Col.ROUND]) + 1
    assert rounds >= doublings(len(wants), holders)
    own = doublings(size - holders, holders) if nodes == 1 else doublings(size - 1, 1)
    assert rounds <= doublings(nodes - 1, holders) + own + 1


def test_one_copy_crosses_to_each_node() -> None:
    placement = base([{0}], 12)
    topology = Topology(12, placement.slots_per_rank, tuple(rank // 4 for rank in range(12)))
    assigned = assign_sources(table([(0, home) for home in range(1, 12)]), placement, topology)
    crossings = [dst // 4 for dst, src in of(assigned, 0).items() if dst // 4 != src // 4]
    assert sorted(crossings) == [1, 2]


def test_the_same_node_is_preferred_while_it_costs_no_round() -> None:
    placement = base([{0, 2}, {0, 2}, {0, 2}], 4)
    topology = Topology(4, placement.slots_per_rank, (0, 0, 1, 1))
    near = assign_sources(table([(0, 3), (1, 3), (2, 1)]), placement, topology)
    assert [of(near, expert) for expert in range(3)] == [{3: 2}, {3: 2}, {1: 0}]


def test_a_hot_sender_is_relieved_by_a_near_one_alone() -> None:
    placement = base([{0, 3}, {0, 3}], 5)
    wants = table([(0, 1), (1, 2)])
    near = Topology.single_node(5, placement.slots_per_rank)
    assert sends(assign_sources(wants, placement, near)) == {0: 1, 3: 1}
    far = Topology(5, placement.slots_per_rank, (0, 0, 0, 1, 1))
    assert sends(assign_sources(wants, placement, far)) == {0: 2}


def test_nodes_take_turns_to_send_over_the_network() -> None:
    placement = base([{0, 2}] * 4, 6)
    topology = Topology(6, placement.slots_per_rank, (0, 0, 1, 1, 2, 2))
    assigned = assign_sources(
        table([(expert, 4 + expert % 2) for expert in range(4)]), placement, topology
    )
    assert sends(assigned) == {0: 2, 2: 2}


def test_relief_reaches_over_several_holders() -> None:
    # Expert 2 has no choice but rank 0; expert 0 must give way to rank 1, and expert 1 to rank 2.
    placement = base([{0, 1}, {1, 2}, {0}], 6)
    topology = Topology(6, placement.slots_per_rank, (0, 0, 0, 0, 0, 0))
    assigned = assign_sources(table([(0, 3), (1, 4), (2, 5)]), placement, topology)
    assert of(assigned, 2) == {5: 0}
    assert of(assigned, 0) == {3: 1}
    assert of(assigned, 1) == {4: 2}


def test_what_was_chosen_first_gives_way_later() -> None:
    # One by one, ranks 0 and 1 are taken when expert 2 comes; expert 1 could use rank 2.
    placement = base([{0, 1}, {1, 2}, {0, 1}], 6)
    topology = Topology.single_node(6, placement.slots_per_rank)
    assigned = assign_sources(table([(0, 3), (1, 4), (2, 5)]), placement, topology)
    assert sends(assigned) == {0: 1, 1: 1, 2: 1}
    assert of(assigned, 1) == {4: 2}


@pytest.mark.parametrize(
    "holders",
    [
        # The worst order for choosing one by one: rank 0, then 4, look idle three times.
        [{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {4, 6}, {0, 4}],
        # Ranks 0 and 2 both find relief at rank 4, which has room for one; the other is rank 5.
        [{0, 1}, {1, 4, 5}, {0, 1}, {2, 3}, {3, 4}, {2, 3}],
    ],
)
def test_relief_counts_what_it_moved(holders: list[set[int]]) -> None:
    placement = base(holders, 15)
    topology = Topology.single_node(15, placement.slots_per_rank)
    wants = [(expert, 8 + expert) for expert in range(len(holders))]
    assigned = assign_sources(table(wants), placement, topology)
    assert max(sends(assigned).values()) == 1


def test_a_duplicate_is_a_local_copy() -> None:
    placement = base([{0}], 3)
    topology = Topology.single_node(3, placement.slots_per_rank)
    assigned = colour(assign_sources(table([(0, 0), (0, 1), (0, 1)]), placement, topology))
    assert assigned.tolist() == [
        [0, 0, 0, 0, 0, -1, 0, 0, 0],
        [0, 0, 0, 0, 0, -1, 1, 0, 0],
        [1, 0, 0, 1, -1, 0, 1, 1, 1],
    ]


def test_refuses_an_expert_that_nobody_holds() -> None:
    placement = base([{0}], 2)
    topology = Topology.single_node(2, placement.slots_per_rank)
    with pytest.raises(PlacementError, match="layer 0, expert 9 has no holder") as e:
        assign_sources(table([(9, 1)]), placement, topology)
    assert e.value.layer == 0
