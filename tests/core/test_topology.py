"""Topologies: what they accept, and distances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from eplbd.core.topology import Link, Topology
from eplbd.errors import ConfigError
from tests.core.arrangements import Group, groups


@given(groups())
def test_link_matrix_agrees_with_link_and_is_symmetric(group: Group) -> None:
    topology = group.topology
    matrix = topology.link_matrix()
    assert matrix.dtype == np.int8
    assert not matrix.flags.writeable
    ranks = range(topology.ranks)
    assert matrix.tolist() == [[topology.link(a, b) for b in ranks] for a in ranks]
    assert (matrix == matrix.T).all()


def test_two_nodes() -> None:
    topology = Topology(3, 2, (7, 7, 1))
    assert (topology.nodes, topology.slots) == (2, 6)
    assert topology.link(0, 0) is Link.RANK
    assert topology.link(0, 1) is Link.NODE
    assert topology.link(1, 2) is Link.NETWORK


def test_single_node() -> None:
    assert Topology.single_node(2, 3) == Topology(2, 3, (0, 0))


@pytest.mark.parametrize(
    ("ranks", "slots", "node_of", "said"),
    [
        (0, 1, (), "ranks is 0, expected at least 1"),
        (1, 0, (0,), "slots_per_rank is 0, expected at least 1"),
        (2, 1, (0,), "node_of names 1 ranks, expected 2"),
        (2, 1, (0, -4), r"node_of\[1\] is -4, expected 0 or more"),
    ],
)
def test_refuses_what_is_no_group(
    ranks: int, slots: int, node_of: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Topology(ranks, slots, node_of)
