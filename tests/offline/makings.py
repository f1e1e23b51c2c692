"""Arbitrary placements and traces for the offline tools' tests."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core.placement import Placement
from eplbd.traces.archive import HeatTrace


@st.composite
def placements(draw: st.DrawFn, *, duplicates: bool = False) -> Placement:
    """Any placement that can be served; with `duplicates` a rank may hold an expert twice."""
    layers, ranks, per_rank = (draw(st.integers(1, 4)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    experts = draw(st.integers(per_rank, ranks * per_rank))
    rows = []
    for _ in range(layers):
        row = rng.permutation(experts)[np.arange(ranks * per_rank) % experts]
        if duplicates:
            row = rng.permutation(row)
        rows.append(row.reshape(ranks, per_rank))
    return Placement(np.stack(rows).astype(np.int32), experts)


@st.composite
def traces(draw: st.DrawFn) -> HeatTrace:
    """Any trace in which every layer and every row counts something."""
    rows, layers, experts = (
        draw(st.integers(1, 5)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 9)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    largest = draw(st.sampled_from([1, 300, 70_000, 2**31 - 2, 1 << 40]))
    heat = rng.integers(0, largest, (rows, layers, experts), dtype=np.int64)
    heat[:, :, 0] += 1
    topk = draw(st.integers(1, experts))
    return HeatTrace(heat, topk, ("",) * rows, {"model": "made up"})


def skewed(
    steps: int, layers: int, experts: int, *, sigma: float, tokens: int, seed: int = 0
) -> NDArray[np.int32]:
    """Poisson counts around one lognormal popularity: stable skew; sigma 0 is sampling noise."""
    rng = np.random.default_rng(seed)
    popularity = rng.lognormal(0.0, sigma, (layers, experts))
    share = popularity / popularity.sum(1, keepdims=True)
    return rng.poisson(share * tokens, (steps, layers, experts)).astype(np.int32)
