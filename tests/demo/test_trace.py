"""Recorded traces as the demo's routing: what cannot be sampled, and the distribution drawn."""

from pathlib import Path

import numpy as np
import pytest

from eplbd.demo.trace import load_routing, sample
from eplbd.errors import ConfigError
from eplbd.traces.archive import HeatTrace, save_trace


def test_a_window_without_a_whole_token_is_refused(tmp_path: Path) -> None:
    heat = np.full((3, 2, 8), 50, dtype=np.int64)
    heat[1, 1] = 0
    path = tmp_path / "trace.npz"
    save_trace(path, HeatTrace(heat, 2, ("",) * 3, {}))
    with pytest.raises(ConfigError, match="window 1, layer 1 has 0 assignments") as refusal:
        load_routing(path)
    assert str(path) in str(refusal.value)


def test_an_expert_chosen_more_often_than_there_are_tokens_is_refused(tmp_path: Path) -> None:
    heat = np.full((3, 2, 8), 50, dtype=np.int64)
    heat[2, 1, 5] = 5000
    path = tmp_path / "trace.npz"
    save_trace(path, HeatTrace(heat, 2, ("",) * 3, {}))
    with pytest.raises(ConfigError, match="window 2, layer 1 counts expert 5 5000 times"):
        load_routing(path)


def skewed() -> HeatTrace:
    """One window whose layer 0 has an expert that every token takes and one that none takes."""
    rng = np.random.default_rng(2)
    heat = np.zeros((1, 3, 32), dtype=np.int64)
    heat[0, :, 2:] = rng.gamma(0.7, size=(3, 30)) * 500
    tokens = -(-heat[0].sum(-1) // 3)
    heat[0, :, 0] = tokens + np.arange(3)
    heat[0, :, 2] += 4 * heat[0, :, 0] - heat[0].sum(-1)
    heat.setflags(write=False)
    return HeatTrace(heat, 4, ("",), {})


def test_sampled_experts_are_distinct_and_follow_the_window() -> None:
    trace = skewed()
    tokens = 4000
    chosen = sample(trace, 0, tokens, np.random.default_rng(3))
    assert chosen.shape == (3, tokens, 4)
    ordered = np.sort(chosen, axis=2)
    assert (ordered[:, :, 1:] != ordered[:, :, :-1]).all()

    share = 4 * trace.heat[0] / trace.heat[0].sum(-1, keepdims=True)
    found = np.stack([np.bincount(layer.ravel(), minlength=32) for layer in chosen])
    assert (found[:, 1] == 0).all(), "an expert without heat was chosen"
    assert (share[:, 0] == 1).all()
    assert (found[:, 0] == tokens).all(), "an expert that every token takes was left out"

    # Choices of different tokens are independent, so the squared deviations of the 30 uncertain
    # experts add up to about their number, with variance twice that.
    uncertain = (share > 0) & (share < 1)
    spread = tokens * share * (1 - share)
    square = np.where(uncertain, (found - tokens * share) ** 2 / np.where(uncertain, spread, 1), 0)
    freedom = uncertain.sum(1)
    assert (np.abs(square.sum(1) - freedom) < 4 * np.sqrt(2 * freedom)).all(), square.sum(1)


def test_sampling_is_repeatable_and_changes_with_the_seed() -> None:
    trace = skewed()
    first, again, other = (sample(trace, 0, 50, np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_every_recorded_trace_can_drive_the_demo(shared_traces: Path) -> None:
    paths = sorted(shared_traces.glob("*.npz"))
    assert paths
    for path in paths:
        trace = load_routing(path)
        chosen = sample(trace, trace.windows - 1, 20, np.random.default_rng(0))
        ordered = np.sort(chosen, axis=2)
        assert (ordered[:, :, 1:] != ordered[:, :, :-1]).all(), path
        held = np.take_along_axis(trace.heat[-1], chosen.reshape(trace.layers, -1), axis=1)
        assert (held > 0).all(), path
