"""Rounds: conflict-free, complete, and as few as possible."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core.rounds import Col, Transfers, colour, edge_colours
from eplbd.errors import LocalProtocolError

Edges = list[tuple[int, int]]
edges = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40)


def degree(chosen: Edges) -> int:
    sides = (Counter(u for u, _ in chosen), Counter(v for _, v in chosen))
    return max((d for side in sides for d in side.values()), default=0)


def table(chosen: Edges, sources: dict[int, int] | None = None) -> Transfers:
    """One row per (SRC, DST); `sources` maps a row to the row whose buffer it reads."""
    used = Counter[int]()
    rows: list[list[int]] = []
    for i, (src, dst) in enumerate(chosen):
        feed = (sources or {}).get(i)
        expert = i if feed is None else rows[feed][Col.EXPERT]
        buffer = -1 if feed is None else rows[feed][Col.DST_BUFFER]
        slot = 0 if feed is None else -1
        rows.append([-1, 0, expert, src, slot, buffer, dst, used[dst], used[dst]])
        used[dst] += 1
    return np.array(rows, dtype=np.int32).reshape(len(rows), len(Col))


def crossing(rows: list[list[int]]) -> list[list[int]]:
    return [row for row in rows if row[Col.SRC] != row[Col.DST]]


def assert_conflict_free(transfers: Transfers, limit: int) -> None:
    rows = crossing(transfers.tolist())
    for end in (Col.SRC, Col.DST):
        busy = Counter((row[Col.ROUND], row[end]) for row in rows)
        assert max(busy.values(), default=0) <= limit


@given(edges, st.integers(1, 3))
def test_colours_are_proper_and_as_few_as_possible(chosen: Edges, limit: int) -> None:
    colours = edge_colours(chosen, limit=limit)
    for side in (0, 1):
        busy = Counter((c, edge[side]) for c, edge in zip(colours, chosen, strict=True))
        assert max(busy.values(), default=0) <= limit
    assert set(colours) <= set(range(-(-degree(chosen) // limit)))


@given(edges, st.integers(1, 3))
def test_rounds_without_chains_equal_the_busiest_rank(chosen: Edges, limit: int) -> None:
    transfers = colour(table(chosen), limit=limit)
    assert_conflict_free(transfers, limit)
    most = degree([(u, v) for u, v in chosen if u != v])
    used = set(transfers[:, Col.ROUND].tolist())
    assert used <= set(range(max(1, -(-most // limit))))
    assert len(transfers) == len(chosen)
    unordered = Counter(tuple(row[1:]) for row in transfers.tolist())
    assert unordered == Counter(tuple(row[1:]) for row in table(chosen).tolist())
    for row in transfers.tolist():
        if row[Col.SRC] == row[Col.DST]:
            assert row[Col.ROUND] == 0


@given(st.data())
def test_buffers_are_read_after_they_are_filled(data: st.DataObject) -> None:
    """Rows hang on earlier rows at random: trees, deeper and wider than any that are planned."""
    chosen: Edges = []
    sources: dict[int, int] = {}
    limit = data.draw(st.integers(1, 2))
    for row in range(data.draw(st.integers(0, 25))):
        dst = data.draw(st.integers(0, 5))
        feed = data.draw(st.integers(-1, row - 1))
        if feed >= 0:
            sources[row] = feed
        chosen.append((chosen[feed][1] if feed >= 0 else data.draw(st.integers(0, 5)), dst))
    transfers = colour(table(chosen, sources), limit=limit)
    assert_conflict_free(transfers, limit)
    filled = {(row[Col.DST], row[Col.DST_BUFFER]): row[Col.ROUND] for row in transfers.tolist()}
    for row in transfers.tolist():
        if row[Col.SRC_BUFFER] >= 0:
            assert filled[row[Col.SRC], row[Col.SRC_BUFFER]] < row[Col.ROUND]
    used = set(transfers[:, Col.ROUND].tolist())
    assert used == set(range(len(used))), "an empty round"
    depth = [0] * len(chosen)
    for row in range(len(chosen)):
        depth[row] = 1 + (depth[sources[row]] if row in sources else 0)
    most = -(-degree([(u, v) for u, v in chosen if u != v]) // limit)
    assert len(used) <= max(most + max(depth, default=0), 1)


@given(st.data())
def test_nodes_keep_within_their_limit(data: st.DataObject) -> None:
    """And a row waits no longer than for those before it in its own ways."""
    chosen = data.draw(edges)
    nodes = data.draw(st.lists(st.integers(0, 2), min_size=7, max_size=7))
    limit, crossings = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    transfers = colour(table(chosen), limit=limit, node_of=nodes, crossings=crossings)
    assert_conflict_free(transfers, limit)
    rows = crossing(transfers.tolist())
    for end in (Col.SRC, Col.DST):
        far = [row for row in rows if nodes[row[Col.SRC]] != nodes[row[Col.DST]]]
        busy = Counter((row[Col.ROUND], nodes[row[end]]) for row in far)
        assert max(busy.values(), default=0) <= crossings
    used = set(transfers[:, Col.ROUND].tolist())
    assert used == set(range(len(used))), "an empty round"
    assert Counter(tuple(row[1:]) for row in transfers.tolist()) == Counter(
        tuple(row[1:]) for row in table(chosen).tolist()
    )
    if len(used) > 1:
        most = max(waits(row, rows, nodes, (limit, crossings)) for row in rows)
        assert len(used) <= 1 + most


def waits(row: list[int], rows: list[list[int]], nodes: list[int], limits: tuple[int, int]) -> int:
    """Rounds in which one of a row's ways may be full without it."""
    src, dst = row[Col.SRC], row[Col.DST]
    limit, crossings = limits
    ranks = [sum(other[Col.SRC] == src for other in rows), sum(o[Col.DST] == dst for o in rows)]
    full = sum((busy - 1) // limit for busy in ranks)
    if nodes[src] == nodes[dst]:
        return full
    far = [other for other in rows if nodes[other[Col.SRC]] != nodes[other[Col.DST]]]
    ways = [
        sum(nodes[other[Col.SRC]] == nodes[src] for other in far),
        sum(nodes[other[Col.DST]] == nodes[dst] for other in far),
    ]
    return full + sum((busy - 1) // crossings for busy in ways)


@given(edges, st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_a_limit_that_nobody_reaches_changes_nothing(chosen: Edges, nodes: list[int]) -> None:
    free = colour(table(chosen))
    loose = colour(table(chosen), node_of=nodes, crossings=len(chosen) + 1)
    assert loose.tolist() == free.tolist()


def test_order_is_total_and_rows_stay_whole() -> None:
    chosen = [(2, 0), (1, 0), (0, 2), (0, 1)]
    transfers = colour(table(chosen))
    assert transfers.tolist() == sorted(transfers.tolist())
    assert {(row[Col.SRC], row[Col.DST]) for row in transfers.tolist()} == set(chosen)
    assert not transfers.flags.writeable


def test_a_chain_goes_before_what_can_wait() -> None:
    # 0 -> 1 -> 2 -> 3 takes three rounds whatever else happens; 0 -> 4 and 0 -> 5 fit beside it.
    chosen = [(0, 4), (0, 5), (0, 1), (1, 2), (2, 3)]
    transfers = colour(table(chosen, {3: 2, 4: 3}))
    when = {(row[Col.SRC], row[Col.DST]): row[Col.ROUND] for row in transfers.tolist()}
    assert (when[0, 1], when[1, 2], when[2, 3]) == (0, 1, 2)
    assert {when[0, 4], when[0, 5]} == {1, 2}


def test_the_busiest_rank_is_served_while_a_chain_runs() -> None:
    # Taken in the order given, the first two rows would keep rank 3 idle in the first round.
    chosen = [(7, 4), (8, 5), (3, 4), (3, 5), (0, 1), (1, 2)]
    transfers = colour(table(chosen, {5: 4}))
    assert transfers[-1, Col.ROUND] == 1


def test_empty() -> None:
    assert colour(table([])).shape == (0, len(Col))
    assert edge_colours([]) == []


def broken(cell: tuple[int, Col], value: int) -> Transfers:
    transfers = table([(0, 1), (1, 2)], {1: 0})
    transfers[cell] = value
    return transfers


@pytest.mark.parametrize(
    ("transfers", "said"),
    [
        (broken((1, Col.SRC_BUFFER), 1), "reads buffer 1 of rank 1, which no transfer fills"),
        (broken((1, Col.EXPERT), 9), "expert 9 to rank 2 reads buffer 0 of rank 1"),
        (broken((1, Col.DST), 1), "two rows fill buffer 0 of rank 1"),
        (table([(1, 1)], {}) + np.array([0, 0, 0, 0, -1, 1, 0, 0, 0], np.int32), "in a ring"),
    ],
)
def test_refuses_tables_that_cannot_be_carried_out(transfers: Transfers, said: str) -> None:
    with pytest.raises(LocalProtocolError, match=said):
        colour(transfers)
