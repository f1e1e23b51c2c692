"""Who sends each expert that an epoch moves.

Owns the choice of holders: the same rank, then the same node, then other nodes, balanced so that no
rank is a hot sender, and the trees by which one expert reaches many homes. It must not know rounds
beyond the fact that what was received may be sent on.
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
    """One expert's way to its new homes."""

    holders: list[_Source]
    homes: list[int]
    """Indices of the rows that cross ranks, one per new home."""

    @property
    def fans_out(self) -> bool:
        """Whether there are more homes than holders: then receivers send on."""
        return len(self.homes) > len(self.holders)


def assign_sources(transfers: Transfers, base: Placement, topology: Topology) -> Transfers:
    """Fill SRC, SRC_SLOT and SRC_BUFFER of every row from the holders in `base`.

    A rank that holds the expert, or receives it in the same table, copies it locally. Where an
    expert has at least as many holders as new homes, each home is served by a holder: one of its
    node unless that holder already sends more than the busiest rank receives (so the choice costs
    no round), then the one that sends least. Where it has fewer, receivers send on from their
    staging buffers, as a tree: n homes of one holder need about log2(n + 1) rounds. Returns a new
    table. Raises PlacementError where nobody holds an expert.
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
                    self._send(home, min(spread.holders, key=self._cost_to(home)))
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
            spread = _Spread(list(at.values()), [])
            for row in rows:
                dst = self.dst[row]
                if dst in at:
                    self.source[row] = at[dst]
                else:
                    at[dst] = _Source(dst, -1, self.buffer[row])
                    spread.homes.append(row)
            spreads.append(spread)
        return spreads

    def _cost_to(self, home: int) -> Callable[[_Source], tuple[int, bool, int, int]]:
        node = self.node_of[self.dst[home]]

        def cost(source: _Source) -> tuple[int, bool, int, int]:
            load = self.load[source.rank]
            over = max(0, load + 1 - self.cap)
            return over, self.node_of[source.rank] != node, load, source.rank

        return cost

    def _send(self, home: int, source: _Source) -> None:
        self.source[home] = source
        self.load[source.rank] += 1

    def _grow_tree(self, spread: _Spread) -> None:
        """Let each rank that has the expert send it once, then all of them again, and so on.

        A copy goes first to nodes without one, then to homes of the sender's node, and crosses
        nodes again only where the sender would idle otherwise.
        """
        waiting: defaultdict[int, deque[int]] = defaultdict(deque)
        for home in spread.homes:
            waiting[self.node_of[self.dst[home]]].append(home)
        having = list(spread.holders)
        while any(waiting.values()):
            idle = sorted(
                having,
                key=lambda s: (len(waiting[self.node_of[s.rank]]), self.load[s.rank], s.rank),
            )
            reached = {self.node_of[source.rank] for source in idle}
            bare = [
                node for node, homes in sorted(waiting.items()) if homes and node not in reached
            ]
            sent = [(source, waiting[node]) for source, node in zip(idle, bare, strict=False)]
            having += [self._send_on(source, homes) for source, homes in sent]
            rest: list[_Source] = []
            for source in idle[len(sent) :]:
                own = waiting[self.node_of[source.rank]]
                if own:
                    having.append(self._send_on(source, own))
                else:
                    rest.append(source)
            for source in rest:
                most = max(waiting.values(), key=len)
                if most:
                    having.append(self._send_on(source, most))

    def _send_on(self, source: _Source, homes: deque[int]) -> _Source:
        """Serve the first of `homes`; return it as a source for the next round."""
        home = homes.popleft()
        self._send(home, source)
        return _Source(self.dst[home], -1, self.buffer[home])

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
