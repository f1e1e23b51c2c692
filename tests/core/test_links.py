"""Links: what they carry is what was configured, or what a late epoch showed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core.links import Links
from eplbd.core.rounds import Col, Transfers
from eplbd.core.topology import Link, Topology

TOPOLOGY = Topology(4, 2, (0, 0, 1, 1))
EXPERT_BYTES = 1000
ROOM_S = 1.0


def rounds(*moves: tuple[int, int, int]) -> Transfers:
    """Rows of (round, SRC, DST)."""
    rows = np.zeros((len(moves), len(Col)), dtype=np.int32)
    for row, (when, src, dst) in enumerate(moves):
        rows[row, [Col.ROUND, Col.SRC, Col.DST]] = when, src, dst
    return rows


class Engine:
    """Ranks 2 and 3 receive from the other node, rank 1 from its own."""

    moves = rounds((0, 0, 2), (0, 1, 3), (1, 0, 1))

    def __init__(self, links: Links) -> None:
        self.links, self.epoch = links, 0

    def stage(
        self, seconds: dict[int, float], room_s: float = ROOM_S, received: int = EXPERT_BYTES
    ) -> None:
        self.epoch += 1
        for rank, took in seconds.items():
            self.links.heard(self.epoch, rank, transfer_s=took, received=received)
        self.links.learn(self.epoch, self.moves, TOPOLOGY, expert_bytes=EXPERT_BYTES, room_s=room_s)

    def known(self) -> tuple[float, float]:
        return self.links.bytes_per_s(Link.NODE), self.links.bytes_per_s(Link.NETWORK)


def test_nothing_is_known_while_epochs_are_in_time() -> None:
    engine = Engine(Links())
    engine.stage({1: 0.9, 2: 0.9, 3: 0.9})
    assert engine.known() == (0, 0)


def test_a_late_epoch_shows_what_its_links_carry() -> None:
    engine = Engine(Links())
    engine.stage({1: 0.5, 2: 2.0, 3: 1.0})
    assert engine.known() == (0, 2 * EXPERT_BYTES / 2.0), (
        "both ranks share the link, the last counts"
    )
    engine.stage({1: 4.0, 2: 0.9, 3: 0.9})
    assert engine.known()[0] == EXPERT_BYTES / 4.0


def test_a_rank_divides_its_time_by_what_it_used() -> None:
    """Rank 2 receives one expert over the network and three from its node, in a round each."""
    engine = Engine(Links())
    engine.moves = rounds((0, 0, 2), (1, 3, 2), (2, 3, 2), (3, 3, 2))
    engine.stage({2: 8.0}, received=4 * EXPERT_BYTES)
    assert engine.known() == (EXPERT_BYTES / 2.0, EXPERT_BYTES / 2.0)


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=30))
def test_a_figure_is_never_beyond_what_was_seen_and_some_growth(seconds: list[float]) -> None:
    engine = Engine(Links())
    seen = [2 * EXPERT_BYTES / took for took in seconds]
    for took in seconds:
        engine.stage({2: took, 3: took})
    assert engine.known()[1] <= max(seen) * 1.1 ** len(seconds)
    assert engine.known()[1] == 0 or engine.known()[1] >= min(seen)


def test_a_link_that_was_slow_once_comes_back() -> None:
    engine = Engine(Links())
    engine.stage({2: 10.0, 3: 10.0})
    slow = engine.known()[1]
    for _ in range(30):
        engine.stage({2: 0.9, 3: 0.9})
    assert engine.known()[1] >= 2 * EXPERT_BYTES / 0.9
    assert engine.known()[1] > 10 * slow


@pytest.mark.parametrize("transfer_s", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_what_was_not_measured_teaches_nothing(transfer_s: float) -> None:
    engine = Engine(Links())
    engine.stage({2: transfer_s, 3: transfer_s})
    assert engine.known() == (0, 0)


def test_without_forwards_there_is_no_time_to_be_late_in() -> None:
    engine = Engine(Links())
    engine.stage({2: 9.0, 3: 9.0}, room_s=0.0)
    assert engine.known() == (0, 0)


@pytest.mark.parametrize("received", [-5, 0, 10**30])
def test_bytes_that_cannot_be_are_taken_for_those_of_the_plan(received: int) -> None:
    links = Links()
    links.heard(1, 2, transfer_s=2.0, received=received)
    links.learn(1, Engine.moves, TOPOLOGY, expert_bytes=EXPERT_BYTES, room_s=ROOM_S)
    assert links.bytes_per_s(Link.NETWORK) == EXPERT_BYTES / 2.0


def test_another_epochs_times_are_not_taken() -> None:
    links = Links()
    links.heard(1, 2, transfer_s=2.0, received=EXPERT_BYTES)
    links.learn(2, Engine.moves, TOPOLOGY, expert_bytes=EXPERT_BYTES, room_s=ROOM_S)
    assert links.bytes_per_s(Link.NETWORK) == 0


def test_what_is_configured_counts_and_what_was_learnt_is_kept_beside_it() -> None:
    engine = Engine(Links(network_bytes_per_s=7.0))
    engine.stage({2: 2.0, 3: 2.0})
    assert engine.known() == (0, 7.0)
    engine.links.configure(3.0, 0.0)
    assert engine.known() == (3.0, EXPERT_BYTES)
    engine.links.spans = False
    assert engine.known() == (3.0, 0.0), "one node has no network to share"
