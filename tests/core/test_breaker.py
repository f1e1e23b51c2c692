"""The circuit breaker: only failures in a row count, it trips once, and it stays open."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core.breaker import Breaker
from eplbd.errors import LocalProtocolError


def test_three_in_a_row_suspend_once() -> None:
    breaker = Breaker(3)
    assert [breaker.failed() for _ in range(5)] == [False, False, True, False, False]
    assert breaker.suspended


def test_a_success_breaks_the_row() -> None:
    breaker = Breaker(2)
    for _ in range(10):
        assert not breaker.failed()
        breaker.succeeded()
    assert not breaker.suspended


def test_a_late_success_does_not_revive() -> None:
    breaker = Breaker(1)
    assert breaker.failed()
    breaker.succeeded()
    assert breaker.suspended


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="limit is 0"):
        Breaker(0)


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=40))
def test_suspended_exactly_when_the_row_was_long_enough(limit: int, outcomes: list[bool]) -> None:
    breaker = Breaker(limit)
    trips = 0
    for good in outcomes:
        if good:
            breaker.succeeded()
        else:
            trips += breaker.failed()
    row = "".join("+" if good else "-" for good in outcomes)
    assert breaker.suspended == ("-" * limit in row)
    assert trips == breaker.suspended
