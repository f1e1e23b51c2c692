"""Who sends each expert that an epoch moves.

Owns the choice of holders: the same rank, then the same node, then other nodes, balanced so that no
rank is a hot sender, and the trees by which one expert reaches many homes. An expert crosses the
network to a node once at most, and only where that node lacks it: every other link is several times
as fast, and nobody else's. It must not know rounds beyond the fact that what was received may be
sent on.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eplbd.core.placement import Placement
from eplbd.core.rounds import Col, Transfers
from eplbd.core.topology import Topology
from eplbd.errors import PlacementError


@dataclass(frozen=True, slots=True, order=True)
class _Source:
    """A rank with the expert in a live slot (buffer -1) or in a staging buffer (slot -1)."""

    rank: int
    slot: int
    buffer: int


@dataclass(slots=True)
class _Spread:
    """One expert's way to some of its new homes: all on the holders' node, or one on each other."""

    holders: list[_Source]
    homes: list[int]
    """Indices of the rows that cross ranks, one per new home."""
    crosses: bool = False
    """Whether that is over the network."""

    @property
    def fans_out(self) -> bool:
        """Whether there are more homes than holders: then receivers send on."""
        return len(self.homes) > len(self.holders)


def assign_sources(transfers: Transfers, base: Placement, topology: Topology) -> Transfers:
    """Fill SRC, SRC_SLOT and SRC_BUFFER of every row from the holders in `base`.

    A rank that holds the expert, or receives it in the same table, copies it locally. A home whose
    node has holders is served by those; of the homes on a node without any, one is served by
    another node and the others by that one. Where there are at least as many senders as homes, each
    home is served by one that has the expert in a slot: by the one that sends least, over the
    network by one of the node that sends least over it. Where there are fewer, receivers send on
    from their staging buffers, as a tree: n homes of one holder need about log2(n + 1) rounds.
    Returns a new table. Raises PlacementError where nobody holds an expert.
    """
    return _Assignment(transfers, base, topology).run()


class _Assignment:
    """The table being filled, and how much each rank sends."""

    def __init__(self, transfers: Transfers, base: Placement, topology: Topology) -> None:
        self.table = transfers.copy()
        self.base = base
        self.node_of = topology.node_of
        self.dst: list[int] = transfers[:, Col.DST].tolist()
        self.buffer: list[int] = transfers[:, Col.DST_BUFFER].tolist()
        self.source: dict[int, _Source] = {}
        self.load = Counter[int]()
        self.leaving = Counter[int]()
        """Sends over the network, by node."""
        self.gates = Counter[int]()
        """By rank: experts that it is the first of its node to have."""
        self.cap = 1
        """Sends of a rank that cost no round: as many as the busiest rank receives."""

    def run(self) -> Transfers:
        """Assign all rows: first those without a choice, then trees, then the rest."""
        spreads = self._group()
        receives = Counter(self.dst[home] for spread in spreads for home in spread.homes)
        self.cap = max(receives.values(), default=1)
        # Stable: equal ones stay in the order of layer and expert.
        spreads.sort(key=lambda s: (len(s.homes) * len(s.holders) > 1, not s.fans_out))
        direct = [spread for spread in spreads if not spread.fans_out]
        for spread in spreads:
            if spread.fans_out:
                self._grow_tree(spread)
            else:
                for home in spread.homes:
                    self._send(home, min(spread.holders, key=self._cost(spread)))
        self._level(direct)
        for row, source in self.source.items():
            self.table[row, Col.SRC : Col.DST] = (source.rank, source.slot, source.buffer)
        return self.table

    def _group(self) -> list[_Spread]:
        """Group the rows by layer and expert; settle those that are local copies."""
        rows_of: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        pairs: list[list[int]] = self.table[:, [Col.LAYER, Col.EXPERT]].tolist()
        for row, (layer, expert) in enumerate(pairs):
            rows_of[layer, expert].append(row)
        spreads: list[_Spread] = []
        for (layer, expert), rows in sorted(rows_of.items()):
            at: dict[int, _Source] = {}
            for rank, slot in np.argwhere(self.base.slots[layer] == expert).tolist():
                at.setdefault(rank, _Source(rank, slot, -1))
            if not at:
                raise PlacementError(
                    f"plan: layer {layer}, expert {expert} has no holder to copy it from; "
                    "validate the current placement first",
                    layer=layer,
                )
            holders, homes = list(at.values()), list[int]()
            for row in rows:
                dst = self.dst[row]
                if dst in at:
                    self.source[row] = at[dst]
                else:
                    at[dst] = self._received(row)
                    homes.append(row)
            spreads += self._near(holders, homes)
        return spreads

    def _received(self, row: int) -> _Source:
        """Where the expert of a row can be sent on from, once it came."""
        return _Source(self.dst[row], -1, self.buffer[row])

    def _near(self, holders: list[_Source], homes: list[int]) -> list[_Spread]:
        """Cut one expert's way into what stays within nodes and what enters those without it."""
        near: defaultdict[int, list[_Source]] = defaultdict(list)
        for source in holders:
            near[self.node_of[source.rank]].append(source)
        waiting: defaultdict[int, list[int]] = defaultdict(list)
        for home in homes:
            waiting[self.node_of[self.dst[home]]].append(home)
        entering: list[int] = []
        for node in sorted(waiting.keys() - near.keys()):
            gate = min(waiting[node], key=lambda home: (self.gates[self.dst[home]], home))
            self.gates[self.dst[gate]] += len(waiting[node]) > 1
            waiting[node].remove(gate)
            near[node].append(self._received(gate))
            entering.append(gate)
        spreads = [_Spread(near[node], own) for node, own in sorted(waiting.items()) if own]
        return [*spreads, _Spread(holders, entering, crosses=True)] if entering else spreads

    def _cost(self, spread: _Spread) -> Callable[[_Source], tuple[int, int, int, int]]:
        def cost(source: _Source) -> tuple[int, int, int, int]:
            load = self.load[source.rank]
            over = max(0, load + 1 - self.cap)
            leaving = self.leaving[self.node_of[source.rank]] if spread.crosses else 0
            return over, leaving, load, source.rank

        return cost

    def _send(self, home: int, source: _Source) -> None:
        self.source[home] = source
        self.load[source.rank] += 1
        node = self.node_of[source.rank]
        self.leaving[node] += node != self.node_of[self.dst[home]]

    def _grow_tree(self, spread: _Spread) -> None:
        """Let each rank that has the expert send it once, then all of them again, and so on."""
        waiting, having = deque(spread.homes), list(spread.holders)
        while waiting:
            for source in sorted(having, key=self._cost(spread)):
                if waiting:
                    home = waiting.popleft()
                    self._send(home, source)
                    having.append(self._received(home))

    def _level(self, direct: list[_Spread]) -> None:
        """Move sends away from the busiest rank while any chain of other holders allows it.

        Stops at the least possible maximum, or at the cap, under which balance costs no round
        (Harvey et al., Semi-matchings for bipartite graphs and load balancing, 2006).
        """
        choices = {home: s.holders for s in direct if len(s.holders) > 1 for home in s.homes}
        while choices:
            busiest = max(self.load.values(), default=0)
            if busiest <= self.cap:
                return
            for rank in [rank for rank, load in self.load.items() if load == busiest]:
                if not self._relieve(rank, choices):
                    return

    def _relieve(self, busy: int, choices: dict[int, list[_Source]]) -> bool:
        """Shift sends along the shortest chain from `busy` to a rank that sends two less."""
        sends: defaultdict[int, list[int]] = defaultdict(list)
        for home in choices:
            sends[self.source[home].rank].append(home)
        came: dict[int, tuple[int, _Source]] = {}
        queue = deque([busy])
        while queue:
            rank = queue.popleft()
            if self.load[rank] <= self.load[busy] - 2:
                self.load[rank] += 1
                self.load[busy] -= 1
                while rank != busy:
                    home, source = came[rank]
                    rank = self.source[home].rank
                    self.source[home] = source
                return True
            for home in sends[rank]:
                for source in choices[home]:
                    if source.rank not in came and source.rank != busy:
                        came[source.rank] = (home, source)
                        queue.append(source.rank)
        return False
