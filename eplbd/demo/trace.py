"""A recorded heat trace as the demo's routing: token choices drawn from it.

Owns the sampling, and what a trace must fulfil to be sampled. It must not know torch, steps or
ranks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplbd.traces.archive import HeatTrace, load_trace
from eplbd.traces.arrays import fault


def load_routing(path: Path) -> HeatTrace:
    """Read a trace of which every window and layer can be sampled.

    Raises ConfigError, naming the file: it is no trace, a window has less than one token, or an
    expert is chosen by more tokens (heat / topk) than the window has.
    """
    trace = load_trace(path)
    heat, topk = trace.heat, trace.topk
    total = heat.sum(2)
    if (total < topk).any():
        window, layer = np.argwhere(total < topk)[0].tolist()
        raise fault(
            "trace",
            path,
            f"window {window}, layer {layer} has {int(total[window, layer])} assignments",
            f"at least one token's: topk is {topk}",
        )
    tokens = total // topk
    over = heat > tokens[:, :, None]
    if over.any():
        window, layer, expert = np.argwhere(over)[0].tolist()
        raise fault(
            "trace",
            path,
            f"window {window}, layer {layer} counts expert {expert} "
            f"{int(heat[window, layer, expert])} times",
            f"at most once for each of its {int(tokens[window, layer])} tokens (heat / topk)",
        )
    return trace


def sample(
    trace: HeatTrace, window: int, tokens: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`[layers, tokens, topk]` int64: each token's distinct experts, as often as in the window.

    An expert is chosen for a token with probability `topk * heat / total` exactly. Drawing one
    after the other without replacement would not keep that (it flattens the hot ones), so this is
    systematic sampling (Madow 1949): experts lie on a circle in random order, each as long as its
    heat, and a token takes those under `topk` evenly spaced hands. In integers, so that no rounding
    makes two hands meet.
    """
    heat = trace.heat[window]
    chosen = np.empty((trace.layers, tokens, trace.topk), dtype=np.int64)
    for layer in range(trace.layers):
        order = rng.permutation(trace.experts)
        total = int(heat[layer].sum())
        ends = np.cumsum(heat[layer][order]) * trace.topk
        hands = rng.integers(total, size=(tokens, 1)) + total * np.arange(trace.topk)
        chosen[layer] = order[np.searchsorted(ends, hands, side="right")]
    return chosen
