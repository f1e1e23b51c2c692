"""Many ranks: the board's sharper norm, whose powers neither overflow nor vanish."""

import numpy as np

from eplbd_policies.board import CROWD, SHARP_POWER, Board, lay, measure, swap, swap_gain

RANKS = CROWD + 2


def board() -> Board:
    """Two experts per rank, one of them with nearly all heat; no replicas."""
    heat = np.ones((1, 2 * RANKS))
    heat[0, 0] = 100.0 * RANKS
    heat *= RANKS / heat.sum()
    slots = np.arange(2 * RANKS).reshape(RANKS, 2)
    price = np.ones((RANKS, 2 * RANKS))
    np.put_along_axis(price, slots, 0.0, axis=1)
    return lay(heat, np.ones(1), 2.0, slots, price, np.zeros(RANKS))


def norm(of: Board) -> float:
    """Weighted norm, counted anew, and without powers that overflow."""
    top = of.load.max()
    return float(top * ((of.load / top) ** SHARP_POWER).sum() ** (1 / SHARP_POWER))


def test_one_hot_rank_among_many_is_measured() -> None:
    layer, hot = board(), np.empty(RANKS)
    measure(layer, hot)
    assert np.isfinite(hot).all()
    assert hot.argmax() == 0
    assert np.isclose(layer.norm[0], norm(layer))


def test_powers_are_scaled_anew_when_the_hot_rank_has_cooled() -> None:
    layer, hot = board(), np.empty(RANKS)
    layer.load[0] = layer.load[1]
    measure(layer, hot)
    assert hot.min() > 0
    assert np.isclose(layer.norm[0], norm(layer))


def test_a_gain_is_what_the_norm_falls_by() -> None:
    layer, hot = board(), np.empty(RANKS)
    layer.load[0] = layer.load[1]
    measure(layer, hot)
    before = norm(layer)
    gain = swap_gain(layer, 1, 2, 2, 4, np.empty(1))
    swap(layer, 1, 2, 0, 0)
    assert np.isclose(before - norm(layer), gain, atol=1e-9)
