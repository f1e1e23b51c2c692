"""Baskets: what an epoch takes, and what it leaves for the next one."""

from __future__ import annotations

import numpy as np

from eplbd.core.basket import Basket, Room
from eplbd.core.chains import Chain, Unit
from eplbd.core.topology import Topology

TOPOLOGY = Topology(4, 1, (0, 0, 1, 1))
HELD = np.array([[0], [1], [2], [3]], dtype=np.int32)


def brings(expert: int, rank: int) -> Chain:
    return [Unit(1 << rank, ((rank, 0, expert),))]


def taken(room: Room, *chains: Chain) -> int:
    """How many of the chains an epoch takes in which every rank holds one expert."""
    basket = Basket(TOPOLOGY, room)
    basket.open(0, HELD)
    for chain in chains:
        basket.offer(chain)
    return len(basket.taken)


def test_a_node_takes_in_no_more_than_its_link_brings() -> None:
    both = brings(0, 2), brings(1, 3)
    assert taken(Room(1), *both) == 2
    assert taken(Room(1, crossings=1), *both) == 1
    assert taken(Room(1, crossings=2), *both) == 2
    assert taken(Room(2, crossings=1), *both) == 2, "in two rounds"


def test_each_node_and_each_direction_has_a_link_of_its_own() -> None:
    assert taken(Room(1, crossings=1), brings(0, 2), brings(2, 0)) == 2


def test_what_stays_within_a_node_takes_nothing_of_its_link() -> None:
    assert taken(Room(1, crossings=1), brings(0, 2), brings(1, 0), brings(3, 3)) == 3


def test_what_came_is_near_for_the_next() -> None:
    """Expert 0 crosses once for both ranks of node 1."""
    assert taken(Room(1, crossings=1), brings(0, 2), brings(0, 3)) == 2


def test_what_does_not_fit_may_be_forced() -> None:
    ring = [Unit(0b1111, ((0, 0, 2), (1, 0, 3), (2, 0, 0), (3, 0, 1)))]
    assert taken(Room(1, crossings=1), ring) == 0
    basket = Basket(TOPOLOGY, Room(1, crossings=1))
    basket.open(0, HELD)
    basket.force(ring)
    assert len(basket.writes) == 4
