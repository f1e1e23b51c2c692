"""Budgets: what they allow, and how it is dealt to layers and to steps."""

import numpy as np

from eplbd import Budget
from eplbd_policies.allowance import allowed, prefixes, within


def budget(moves: int | None = None, total_bytes: int | None = None, each: int = 10) -> Budget:
    return Budget(moves, total_bytes, 1.0, each)


def test_the_tighter_of_moves_and_bytes_counts() -> None:
    assert allowed(budget()) is None
    assert allowed(budget(moves=7)) == 7
    assert allowed(budget(total_bytes=39)) == 3
    assert allowed(budget(moves=2, total_bytes=39)) == 2
    assert allowed(budget(total_bytes=5, each=0)) == 5


def test_a_layer_that_is_too_dear_is_passed_over() -> None:
    layers, moves = np.array([2, 0, 1]), np.array([5, 3, 9])
    assert within(layers, moves, budget(moves=8)).tolist() == [0, 1]
    assert within(layers, moves, budget()).tolist() == [2, 0, 1]
    assert within(layers, moves, budget(moves=0)).size == 0


def test_steps_are_taken_in_the_order_of_what_a_transfer_relieves() -> None:
    steep = np.array([[100.0, 60.0, 50.0], [0.0, 2.0, 4.0]])
    late = np.array([[90.0, 90.0, 14.0], [0.0, 1.0, 4.0]])  # the first step alone brings nothing
    assert prefixes([steep, late], None) == [2, 2]
    assert prefixes([steep, late], 0) == [0, 0]
    assert prefixes([steep, late], 2) == [1, 0]
    assert prefixes([steep, late], 4) == [2, 0]  # 20 each, then what still fits
    assert prefixes([steep, late], 6) == [1, 2]
    assert prefixes([np.array([[5.0], [0.0]])], 9) == [0]
