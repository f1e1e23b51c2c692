"""The shape of an expert-parallel group: ranks, slots per rank, nodes, and how fast ranks are.

Owns the distance between two ranks (`Link`). It must not know experts, placements or bandwidths,
nor how somebody came to think a rank slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import TYPE_CHECKING, Self

import numpy as np

from eplbd.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Link(IntEnum):
    """How far two ranks are apart; a smaller value is a cheaper transfer."""

    RANK = 0
    """The same rank: a local copy."""
    NODE = 1
    """Another rank of the same node."""
    NETWORK = 2
    """A rank of another node."""


@dataclass(frozen=True, slots=True)
class Topology:
    """An expert-parallel group.

    ranks: number of EP ranks. slots_per_rank: physical experts per rank and layer. node_of: node id
    of each rank; ids are arbitrary non-negative integers, equal ids are one node. speed: of each
    rank, relative to the others: one of half the speed takes twice the time for the same tokens; 1
    for all where none are given. Raises ConfigError where these do not describe a group.
    """

    ranks: int
    slots_per_rank: int
    node_of: tuple[int, ...]
    speed: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ConfigError(f"topology: ranks is {self.ranks}, expected at least 1")
        if self.slots_per_rank < 1:
            raise ConfigError(
                f"topology: slots_per_rank is {self.slots_per_rank}, expected at least 1"
            )
        if len(self.node_of) != self.ranks:
            raise ConfigError(
                f"topology: node_of names {len(self.node_of)} ranks, expected {self.ranks}; "
                "give one node id per rank"
            )
        if min(self.node_of) < 0:
            rank = next(r for r, node in enumerate(self.node_of) if node < 0)
            raise ConfigError(
                f"topology: node_of[{rank}] is {self.node_of[rank]}, expected 0 or more"
            )
        if not self.speed:
            object.__setattr__(self, "speed", (1.0,) * self.ranks)
        if len(self.speed) != self.ranks or not all(0 < each < inf for each in self.speed):
            raise ConfigError(
                f"topology: speed is {self.speed}, expected a positive number for each of "
                f"{self.ranks} ranks"
            )

    @classmethod
    def single_node(cls, ranks: int, slots_per_rank: int) -> Self:
        """All ranks on one node."""
        return cls(ranks, slots_per_rank, (0,) * ranks)

    @property
    def nodes(self) -> int:
        """Number of distinct nodes."""
        return len(set(self.node_of))

    @property
    def slots(self) -> int:
        """Physical experts per layer, over all ranks."""
        return self.ranks * self.slots_per_rank

    def link(self, a: int, b: int) -> Link:
        """Return the link class between ranks `a` and `b`; symmetric."""
        if a == b:
            return Link.RANK
        return Link.NODE if self.node_of[a] == self.node_of[b] else Link.NETWORK

    def link_matrix(self) -> NDArray[np.int8]:
        """`[ranks, ranks]` int8 of `Link` values, read-only."""
        nodes = np.asarray(self.node_of)
        matrix = np.where(nodes[:, None] == nodes, Link.NODE, Link.NETWORK).astype(np.int8)
        np.fill_diagonal(matrix, Link.RANK)
        matrix.setflags(write=False)
        return matrix
