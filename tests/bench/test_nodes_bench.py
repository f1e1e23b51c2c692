"""What crosses the network on four nodes, against the first holder as sender and the least.

A cold start on 32 ranks of four nodes, 256 experts of nine slots a rank, heat as skewed as that of
real models: every plan moves most of its replicas between nodes, so senders are all that is left
to choose. Run with `-s` to read the figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from eplbd.core.placement import Placement
from eplbd.core.plan import Plan
from eplbd.core.rounds import Col
from eplbd.core.topology import Link, Topology

LAYERS, EXPERTS, RANKS, SLOTS, NODES = 4, 256, 32, 9, 4
TOPOLOGY = Topology(RANKS, SLOTS, tuple(rank * NODES // RANKS for rank in range(RANKS)))
SKEW = 2.0


@dataclass
class Way:
    """Experts over the network, in sum over a plan, and rounds."""

    taken: int = 0
    first_holder: int = 0
    least: int = 0
    rounds: int = 0
    most_at_once: int = 0


def packed(seed: int) -> Placement:
    """Copies to the hottest experts, then all of them at random: no two on one rank."""
    rng = np.random.default_rng(seed)
    rows = np.empty((LAYERS, RANKS, SLOTS), np.int32)
    for layer in range(LAYERS):
        heat = rng.lognormal(0, SKEW, EXPERTS)
        count = np.ones(EXPERTS, int)
        for _ in range(RANKS * SLOTS - EXPERTS):
            count[np.where(count < RANKS, heat / count, -1).argmax()] += 1
        free = np.full(RANKS, SLOTS)
        held: list[list[int]] = [[] for _ in range(RANKS)]
        for expert in np.argsort(-count, kind="stable").tolist():
            order = np.lexsort((rng.random(RANKS), -free))
            for rank in order[: count[expert]].tolist():
                held[rank].append(expert)
                free[rank] -= 1
        rows[layer] = held
    return Placement(rows, EXPERTS)


def carried_out(current: Placement, target: Placement, crossings: int | None = None) -> Way:
    plan, way = Plan(current, target, TOPOLOGY), Way()
    node = np.array(TOPOLOGY.node_of)
    while (epoch := plan.next_epoch(2, crossings=crossings)) is not None:
        rows, base = epoch.transfers, plan.base
        layer, expert, dst = (rows[:, col] for col in (Col.LAYER, Col.EXPERT, Col.DST))
        hosts = base.hosts()[layer, :, expert]
        way.taken += epoch.by_link(TOPOLOGY)[Link.NETWORK]
        way.first_holder += int((node[hosts.argmax(1)] != node[dst]).sum())
        near = (hosts[:, None, :] & (node == np.arange(NODES)[:, None])).any(2)
        bare = ~near[np.arange(len(rows)), node[dst]]
        way.least += len(set(zip(layer[bare], expert[bare], node[dst[bare]], strict=True)))
        way.rounds += epoch.rounds
        far = node[rows[:, Col.SRC]] != node[dst]
        into = np.bincount(rows[far, Col.ROUND] * NODES + node[dst[far]], minlength=1)
        way.most_at_once = max(way.most_at_once, int(into.max(initial=0)))
        plan.settled()
    return way


@pytest.fixture(scope="module")
def pair() -> tuple[Placement, Placement]:
    return packed(1), packed(2)


def test_no_expert_crosses_the_network_for_nothing(pair: tuple[Placement, Placement]) -> None:
    way = carried_out(*pair)
    print(
        f"\n{way.taken} experts over the network, {way.least} are the least, the first holder "
        f"takes {way.first_holder}: {way.taken / way.first_holder:.2f} of its bytes"
    )
    assert way.taken == way.least
    assert way.taken < way.first_holder


@pytest.mark.parametrize("crossings", [1, 2, 4])
def test_a_nodes_link_is_not_overrun(pair: tuple[Placement, Placement], crossings: int) -> None:
    free, bound = carried_out(*pair), carried_out(*pair, crossings)
    print(
        f"\n{crossings} into a node at once: {bound.rounds} rounds, {free.rounds} with up to "
        f"{free.most_at_once}"
    )
    assert bound.most_at_once <= crossings < free.most_at_once
    assert bound.taken <= 1.1 * free.taken
    assert bound.rounds <= free.rounds * (1 + free.most_at_once / crossings)
