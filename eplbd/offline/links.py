"""How long the moves between two placements take, from the bandwidth of each link class.

Owns the estimate. The rounds are those that the daemon would run (`core.plan`). Must not know
policies. What it returns is the time if nothing of it were hidden behind forwards: an engine that
stops for its moves stops for that long, eplbd spreads it over bubbles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import Placement
from eplbd.core.plan import EpochPlan, Plan
from eplbd.core.rounds import Col
from eplbd.core.topology import Link, Topology
from eplbd.errors import ConfigError

EXPERT_BYTES = 44_040_192
"""One expert of DeepSeek-R1 in 8 bit: 3 x 7168 x 2048."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second that one rank sends or receives. The defaults are cautious for 2024's parts.

    rank: a copy within the device's memory. node: to another device of the node. network: to
    another node, one 200 Gb/s port per device.
    """

    rank: float = 1000e9
    node: float = 100e9
    network: float = 20e9

    def __post_init__(self) -> None:
        if not min(self.rank, self.node, self.network) > 0:
            raise ConfigError(f"bandwidths {self.rank}, {self.node}, {self.network}; expected > 0")

    def seconds(self, transferred_bytes: int) -> NDArray[np.float64]:
        """`[link class]`: how long that many bytes take, indexed by `Link`."""
        per_class = {Link.RANK: self.rank, Link.NODE: self.node, Link.NETWORK: self.network}
        return np.array([transferred_bytes / per_class[link] for link in Link])


@dataclass(frozen=True, slots=True)
class Transfer:
    """epochs, rounds: as many as the daemon would run. seconds: of all of them, nothing hidden."""

    epochs: int
    rounds: int
    seconds: float


def transfer(
    before: Placement,
    after: Placement,
    topology: Topology,
    bandwidth: Bandwidth,
    expert_bytes: int,
    *,
    experts_per_rank: int = 2,
) -> Transfer:
    """The cost of going from `before` to `after`: each round waits for its slowest transfer."""
    plan = Plan(before, after, topology)
    links = topology.link_matrix()
    per_expert = bandwidth.seconds(expert_bytes)
    epochs, rounds, seconds = 0, 0, 0.0
    while (epoch := plan.next_epoch(experts_per_rank)) is not None:
        epochs += 1
        rounds += epoch.rounds
        seconds += _seconds(epoch, links, per_expert)
        plan.settled()
    return Transfer(epochs, rounds, seconds)


def _seconds(epoch: EpochPlan, links: NDArray[np.int8], per_expert: NDArray[np.float64]) -> float:
    table = epoch.transfers
    slowest = np.zeros(epoch.rounds)
    each = per_expert[links[table[:, Col.SRC], table[:, Col.DST]]]
    np.maximum.at(slowest, table[:, Col.ROUND], each)
    return float(slowest.sum())
