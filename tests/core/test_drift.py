"""When load counts as changed: fluctuation does not, a shift in any layer does."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core.drift import Profile

EXPERTS = 64


def window(seed: int, weights: NDArray[np.float64], steps: int = 64) -> NDArray[np.int32]:
    """Steps of a hundred tokens per layer, drawn with `weights` `[layers, experts]`."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.multinomial(100, layer, steps) for layer in weights], axis=1)
    return drawn.astype(np.int32)


def skewed(layers: int = 3) -> NDArray[np.float64]:
    weights = np.arange(1.0, EXPERTS + 1) ** 2
    return np.broadcast_to(weights / weights.sum(), (layers, EXPERTS)).copy()


@given(st.integers(0, 2**32 - 2))
def test_chance_is_no_change(seed: int) -> None:
    weights = skewed()
    assert not Profile.of(window(seed + 1, weights)).differs(Profile.of(window(seed, weights)))


@given(st.integers(0, 2**32 - 2), st.integers(0, 2))
def test_a_shift_in_one_layer_is_a_change(seed: int, layer: int) -> None:
    before = Profile.of(window(seed, skewed()))
    weights = skewed()
    weights[layer] = weights[layer, ::-1]
    after = Profile.of(window(seed + 1, weights))
    assert after.differs(before)
    assert before.differs(after)


def test_a_window_that_straddles_a_shift_does_not_hide_the_next() -> None:
    weights = skewed()
    torn = np.concatenate([window(1, weights), window(2, weights[:, ::-1])])
    assert Profile.of(window(3, weights[:, ::-1])).differs(Profile.of(torn))


def test_more_of_the_same_is_no_change() -> None:
    steps = np.full((8, 1, 4), 7, dtype=np.int32)
    assert not Profile.of(steps * 1000).differs(Profile.of(steps))


def test_a_layer_without_load_is_no_change() -> None:
    nothing = Profile.of(np.zeros((8, 2, 4), dtype=np.int32))
    assert not nothing.differs(nothing)
    assert Profile.of(np.ones((8, 2, 4), dtype=np.int32)).differs(nothing)
