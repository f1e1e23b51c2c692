"""Heat: the values that policies read."""

from __future__ import annotations

import numpy as np
import pytest

from eplbd.core.heat import PHASES, Budget, Heat
from eplbd.core.placement import Placement


def test_total_is_wide_enough_for_any_window() -> None:
    steps = np.full((3, 1, 2), 2**31 - 1, dtype=np.int32)
    total = Heat(steps, "all").total
    assert total.tolist() == [[3 * (2**31 - 1)] * 2]
    assert total.dtype == np.int64
    assert not total.flags.writeable


def test_an_empty_window_has_no_heat() -> None:
    assert Heat(np.zeros((0, 2, 3), np.int32), PHASES[0]).total.tolist() == [[0] * 3] * 2


def test_values_are_frozen() -> None:
    budget = Budget(moves=None, bytes=None, deadline_s=1.0, expert_bytes=1)
    with pytest.raises(AttributeError):
        budget.moves = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("moves", "octets", "allowed"),
    [
        (None, None, True),
        (2, None, True),
        (1, None, False),
        (None, 20, True),
        (None, 19, False),
        (2, 19, False),
        (1, 20, False),
        (0, 0, False),
    ],
)
def test_a_budget_allows_what_moves_and_bytes_allow(
    moves: int | None, octets: int | None, allowed: bool
) -> None:
    """Two experts change their ranks; two others only their slots, which costs nothing."""
    budget = Budget(moves, octets, deadline_s=1.0, expert_bytes=10)
    current = Placement(np.array([[[0, 1, 2], [3, 4, 5]]], dtype=np.int32), 6)
    proposal = Placement(np.array([[[1, 0, 3], [2, 4, 5]]], dtype=np.int32), 6)
    assert budget.allows(current, proposal) == allowed
    assert budget.allows(current, current)
