"""What is new and what is not, of bundles of other nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eplbd.runtime.replay import SESSIONS, Replays


def test_numbers_go_up_and_gaps_are_no_matter() -> None:
    replays = Replays()
    assert not replays.refused(b"a", 7, 1)
    assert not replays.refused(b"a", 7, 2)
    assert not replays.refused(b"a", 7, 9)
    assert "number 9 came after 9" in replays.refused(b"a", 7, 9)
    assert "number 3 came after 9" in replays.refused(b"a", 7, 3)
    assert not replays.refused(b"a", 7, 10)


def test_a_new_life_begins_anew_and_ends_the_last_one() -> None:
    replays = Replays()
    assert not replays.refused(b"a", 7, 100)
    assert not replays.refused(b"a", 8, 1)
    assert "two daemons have one key" in replays.refused(b"a", 7, 101)
    assert not replays.refused(b"a", 8, 2)


def test_peers_are_apart() -> None:
    replays = Replays()
    assert not replays.refused(b"a", 7, 5)
    assert not replays.refused(b"b", 7, 5)
    assert replays.refused(b"a", 7, 5)


def test_what_is_remembered_is_bounded() -> None:
    replays = Replays()
    for session in range(3 * SESSIONS):
        assert not replays.refused(b"a", session, 1)
    assert replays.refused(b"a", 3 * SESSIONS - 2, 2)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9))))
def test_nothing_is_ever_taken_twice(bundles: list[tuple[int, int]]) -> None:
    replays = Replays()
    taken = [bundle for bundle in bundles if not replays.refused(b"a", *bundle)]
    assert len(set(taken)) == len(taken)
    sessions = [session for session, _ in taken]
    assert sessions == sorted(sessions, key=sessions.index), "a session that ended stays ended"
