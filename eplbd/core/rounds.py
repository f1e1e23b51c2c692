"""When each transfer of an epoch happens: rounds in which no rank and no node is over its limit.

Owns the layout of a transfer table (`Col`) and the colouring. It must not know how a sender was
chosen (that is `sources`), nor bandwidths and forwards (that is `bubble`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from eplbd.errors import LocalProtocolError

Transfers = NDArray[np.int32]
"""`[m, 9]` int32, one row per slot that an epoch writes; columns are `Col`."""


class Col(IntEnum):
    """Columns of a transfer table."""

    ROUND = 0
    LAYER = 1
    EXPERT = 2
    SRC = 3
    """Sending rank; equal to DST for a local copy."""
    SRC_SLOT = 4
    """Live local slot at SRC; -1 where the source is a staging buffer."""
    SRC_BUFFER = 5
    """Staging buffer at SRC, filled in an earlier round; -1 where the source is a live slot."""
    DST = 6
    DST_SLOT = 7
    DST_BUFFER = 8
    """Staging buffer at DST, from 0; the commit copies it to DST_SLOT."""


def colour(
    transfers: Transfers,
    *,
    limit: int = 1,
    node_of: Sequence[int] = (),
    crossings: int | None = None,
) -> Transfers:
    """Give every transfer its round; order the table by round, layer, expert and destination.

    In a round a rank sends at most `limit` and receives at most `limit` transfers; local copies do
    not count. node_of: node of each rank. crossings: most transfers that leave a node in a round,
    and most that enter it; None for any number. What reads a staging buffer comes in a later round
    than what fills it. Without such chains between ranks, and while nodes stay within their limit
    by themselves, the number of rounds is the least possible: ceil(D / limit), D the most sends or
    receives of one rank (König, 1916). Where they do not, every round takes what it can, most
    hindered first. Returns a new read-only table. Raises LocalProtocolError where a source buffer
    is never filled.
    """
    batch = _Batch(transfers.tolist(), _Limits(limit, node_of, crossings))
    batch.place_chains()
    batch.place_rest()
    batch.place_copies()
    ordered = transfers.copy()
    ordered[:, Col.ROUND] = batch.when
    keys = (Col.DST_SLOT, Col.DST, Col.EXPERT, Col.LAYER, Col.ROUND)
    ordered = ordered[np.lexsort([ordered[:, key] for key in keys])]
    ordered.setflags(write=False)
    return ordered


_Vertex = tuple[int, int, int]
"""Side (0 sends, 1 receives), rank, part of the rank."""


def edge_colours(edges: list[tuple[int, int]], *, limit: int = 1) -> list[int]:
    """Colour a bipartite multigraph so that a vertex meets each colour at most `limit` times.

    edges: (left, right); equal numbers on the two sides are different vertices. Uses
    ceil(D / limit) colours, D the highest degree: each edge takes a colour free at both ends, or
    frees one by exchanging two colours along an alternating path. Deterministic in their order.
    """
    sides = (Counter(u for u, _ in edges), Counter(v for _, v in edges))
    colours = -(-max((d for side in sides for d in side.values()), default=0) // limit)
    seen = Counter[tuple[int, int]]()
    ends: list[tuple[_Vertex, _Vertex]] = []
    held: defaultdict[_Vertex, dict[int, int]] = defaultdict(dict)
    for edge, pair in enumerate(edges):
        # A vertex is cut into `limit` parts of at most `colours` edges, which leaves limit 1.
        u, v = ((side, rank, seen[side, rank] // colours) for side, rank in enumerate(pair))
        seen.update(enumerate(pair))
        ends.append((u, v))
        free = next((c for c in range(colours) if c not in held[u] and c not in held[v]), -1)
        if free < 0:
            free = next(c for c in range(colours) if c not in held[u])
            other = next(c for c in range(colours) if c not in held[v])
            _exchange(v, free, other, ends, held)
        held[u][free] = held[v][free] = edge
    of = [-1] * len(edges)
    for at in held.values():
        for c, edge in at.items():
            of[edge] = c
    return of


def _exchange(
    start: _Vertex,
    first: int,
    second: int,
    ends: list[tuple[_Vertex, _Vertex]],
    held: defaultdict[_Vertex, dict[int, int]],
) -> None:
    """Exchange two colours along the path from `start` that begins with colour `first`.

    `second` is free at `start`, so the path is simple; afterwards `first` is free there.
    """
    path: list[tuple[int, int]] = []
    vertex, colour_now, colour_next = start, first, second
    while (edge := held[vertex].get(colour_now, -1)) >= 0:
        path.append((edge, colour_now))
        u, v = ends[edge]
        vertex = v if vertex == u else u
        colour_now, colour_next = colour_next, colour_now
    for edge, c in path:
        for vertex in ends[edge]:
            del held[vertex][c]
    for edge, c in path:
        for vertex in ends[edge]:
            held[vertex][first + second - c] = edge


_Way = tuple[int, int]
"""One of the things that a transfer takes up: what (see `_Limits.ways`), of which rank or node."""


class _Limits:
    """What a round may hold."""

    def __init__(self, ranks: int, node_of: Sequence[int], crossings: int | None) -> None:
        self.ranks = ranks
        self._node_of, self._crossings = node_of, crossings
        nodes = ranks if crossings is None else crossings
        self._most = (ranks, ranks, nodes, nodes)

    def ways(self, src: int, dst: int) -> Iterator[_Way]:
        """What a transfer between two ranks takes up: these, and over the network their nodes."""
        yield 0, src
        yield 1, dst
        if self._crossings is not None and self._node_of[src] != self._node_of[dst]:
            yield 2, self._node_of[src]
            yield 3, self._node_of[dst]

    def most(self, way: _Way) -> int:
        """How many transfers may take it in a round."""
        return self._most[way[0]]


class _Batch:
    """The rows of one table as lists, and the round of each."""

    def __init__(self, rows: list[list[int]], limits: _Limits) -> None:
        self.limits = limits
        self.src = [row[Col.SRC] for row in rows]
        self.dst = [row[Col.DST] for row in rows]
        self.ways = [
            () if src == dst else tuple(limits.ways(src, dst))
            for src, dst in zip(self.src, self.dst, strict=True)
        ]
        self.when = [-1] * len(rows)
        self.next_round = 0
        self.parent = _parents(rows)
        feeding = set(self.parent)
        self.copies = [
            i for i in range(len(rows)) if self.src[i] == self.dst[i] and i not in feeding
        ]
        """Local copies that nothing waits for."""
        leaves = set(self.copies)
        self.open = [i for i in range(len(rows)) if i not in leaves]
        """Rows without a round yet, copies aside."""
        self.tail = self._tails()
        """Rounds that must follow each row."""

    def _tails(self) -> list[int]:
        tail = [0] * len(self.when)
        for i in self.open:
            length, p = 1, self.parent[i]
            while p >= 0 and tail[p] < length:
                if length > len(tail):
                    raise LocalProtocolError("transfers: staging buffers feed each other in a ring")
                tail[p] = length
                length, p = length + 1, self.parent[p]
        return tail

    def place_chains(self) -> None:
        """Fill rounds, most urgent row first, until no chain is left."""
        while any(self.tail[i] or self.parent[i] >= 0 for i in self.open):
            self._fill_round()

    def _fill_round(self) -> None:
        """Take what is ready: what much waits for, then what keeps the busiest ways busy."""
        busy = Counter(way for i in self.open for way in self.ways[i])
        ready = [i for i in self.open if self.parent[i] < 0 or self.when[self.parent[i]] >= 0]
        ready.sort(key=lambda i: (-self.tail[i], -self._hindered(i, busy), i))
        taken = Counter[_Way]()
        for i in ready:
            if all(taken[way] < self.limits.most(way) for way in self.ways[i]):
                taken.update(self.ways[i])
                self.when[i] = self.next_round
        self.open = [i for i in self.open if self.when[i] < 0]
        self.next_round += 1

    def _hindered(self, row: int, busy: Counter[_Way]) -> float:
        """Rounds that all need who want the ways of `row`, summed over these."""
        return sum(busy[way] / self.limits.most(way) for way in self.ways[row])

    def place_rest(self) -> None:
        """Colour the rows that wait for nothing; where nodes are over their limit, fill rounds."""
        ends = [(self.src[i], self.dst[i]) for i in self.open]
        coloured = dict(zip(self.open, edge_colours(ends, limit=self.limits.ranks), strict=True))
        used = Counter((c, way) for i, c in coloured.items() for way in self.ways[i])
        if any(times > self.limits.most(way) for (_, way), times in used.items()):
            while self.open:
                self._fill_round()
            return
        for i, c in coloured.items():
            self.when[i] = self.next_round + c
        self.open = []

    def place_copies(self) -> None:
        """Put each local copy as early as its source allows."""
        for i in self.copies:
            p = self.parent[i]
            self.when[i] = 0 if p < 0 else self.when[p] + 1


def _parents(rows: list[list[int]]) -> list[int]:
    """Index of the row that fills each row's source buffer; -1 for a live slot."""
    fills: dict[tuple[int, int], int] = {}
    for i, row in enumerate(rows):
        if fills.setdefault((row[Col.DST], row[Col.DST_BUFFER]), i) != i:
            raise LocalProtocolError(
                f"transfers: two rows fill buffer {row[Col.DST_BUFFER]} of rank {row[Col.DST]}"
            )
    parents: list[int] = []
    for row in rows:
        buffer = row[Col.SRC_BUFFER]
        at = fills.get((row[Col.SRC], buffer), -1) if buffer >= 0 else -1
        if buffer >= 0 and (at < 0 or rows[at][Col.LAYER : Col.SRC] != row[Col.LAYER : Col.SRC]):
            raise LocalProtocolError(
                f"transfers: layer {row[Col.LAYER]}, expert {row[Col.EXPERT]} to rank "
                f"{row[Col.DST]} reads buffer {buffer} of rank {row[Col.SRC]}, which no transfer "
                "fills with it; name a live slot or a filled buffer"
            )
        parents.append(at)
    return parents
