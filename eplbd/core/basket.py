"""What one epoch takes of a plan, and how much room is left for more.

Owns the guess of what every rank and every node will send and receive. It must not know which
layers come first (that is `plan`), who will send (`sources` decides), nor when (`rounds`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eplbd.core.chains import Chain, Unit, Write
    from eplbd.core.topology import Topology

_PATIENCE = 8
"""Units that did not fit, per rank, after which an epoch looks no further: twice as many gain 1
%."""


class Room(NamedTuple):
    """What an epoch may hold.

    experts_per_rank: most that a rank receives. moves: most over all ranks, None for any number.
    crossings: most experts that enter a node, and that leave it, over the network in a round; None
    for any number.
    """

    experts_per_rank: int
    moves: int | None = None
    crossings: int | None = None


class Basket:
    """What one epoch takes, and how much room is left on each rank to receive and to send.

    The room to send is a guess, made with the near holder that has most left, or with any holder
    where none is near; `sources` decides. It keeps out units that would only lengthen the epoch by
    rounds in which most ranks or links idle.
    """

    def __init__(self, topology: Topology, room: Room) -> None:
        self.writes: list[tuple[int, Write]] = []
        """With the layer of each."""
        self.taken: list[tuple[Chain, int]] = []
        """Chains and how many of their first units are in."""
        ranks, most = topology.ranks, room.experts_per_rank
        self._node_of = topology.node_of
        self._layer = -1
        self._slots = np.empty((ranks, 0), dtype=np.int32)
        self._holders: dict[int, list[int]] = {}
        """Of the experts that were asked for in this layer."""
        self._receives = [most] * ranks
        self._sends = [most] * ranks
        self._ways: Counter[tuple[bool, int]] = Counter()
        """Crossings so far: whether they enter, and which node."""
        self._crossings = None if room.crossings is None else room.crossings * most
        self._full = 0
        """Bit set of the ranks that can receive no more."""
        self._all = (1 << ranks) - 1
        self._moves = ranks * most if room.moves is None else room.moves
        self._patience = _PATIENCE * ranks

    @property
    def is_full(self) -> bool:
        """Whether looking further is not worth it."""
        return self._full == self._all or len(self.writes) >= self._moves or self._patience <= 0

    def open(self, layer: int, slots: NDArray[np.int32]) -> None:
        """Go on to a layer that now holds `slots`, `[ranks, slots_per_rank]`."""
        self._layer, self._slots = layer, slots
        self._holders = {}

    def offer(self, chain: Chain) -> None:
        """Take as many units from the front of `chain` as fit."""
        units = 0
        while units < len(chain) and self._fits(chain[units]):
            self._put(chain[units])
            units += 1
        self._patience -= units < len(chain)
        if units:
            self.taken.append((chain, units))

    def force(self, chain: Chain) -> None:
        """Take the first unit of `chain`, however large."""
        self._put(chain[0])
        self.taken.append((chain, 1))

    def _fits(self, unit: Unit) -> bool:
        if unit.ranks & self._full or len(self.writes) + len(unit.writes) > self._moves:
            return False
        senders = [self._sender(rank, expert) for rank, _, expert in unit.writes]
        needed = Counter(senders)
        if any(self._sends[rank] < sends for rank, sends in needed.items()):
            return False
        if self._crossings is None:
            return True
        ways = self._crossed(unit, senders)
        return all(self._ways[way] + count <= self._crossings for way, count in ways.items())

    def _sender(self, rank: int, expert: int) -> int:
        """The holder with most room left to send to `rank`, among those of its node if any."""
        holders, node = self._held_by(expert), self._node_of[rank]
        near = [holder for holder in holders if self._node_of[holder] == node]
        return max(near or holders, key=self._sends.__getitem__)

    def _held_by(self, expert: int) -> list[int]:
        """The ranks that hold an expert of the layer; looked for when first asked for."""
        holders = self._holders.get(expert)
        if holders is None:
            holders = self._holders[expert] = np.nonzero(self._slots == expert)[0].tolist()
        return holders

    def _crossed(self, unit: Unit, senders: list[int]) -> Counter[tuple[bool, int]]:
        """The ways between nodes that a unit takes."""
        ways: Counter[tuple[bool, int]] = Counter()
        for (rank, _, _), sender in zip(unit.writes, senders, strict=True):
            if self._node_of[rank] != self._node_of[sender]:
                ways.update(((True, self._node_of[rank]), (False, self._node_of[sender])))
        return ways

    def _put(self, unit: Unit) -> None:
        senders = [self._sender(rank, expert) for rank, _, expert in unit.writes]
        self._ways.update(self._crossed(unit, senders))
        for write, sender in zip(unit.writes, senders, strict=True):
            rank, _, expert = write
            self.writes.append((self._layer, write))
            self._receives[rank] -= 1
            if not self._receives[rank]:
                self._full |= 1 << rank
            self._sends[sender] -= 1
            # What was received can be sent on from its staging buffer.
            self._held_by(expert).append(rank)
