"""The file of a placement: round trips, and refusals that name file and place."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.traces.placements import load_placement, save_placement

LINEAR = Placement.linear(3, 8, 4, 3)


@given(
    seed=st.integers(0, 99),
    layers=st.integers(1, 4),
    ranks=st.integers(1, 5),
    per=st.integers(1, 5),
)
def test_what_was_written_is_read(
    seed: int, layers: int, ranks: int, per: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    experts = int(rng.integers(1, ranks * per + 1))
    row = np.arange(ranks * per) % experts
    slots = np.stack([rng.permutation(row) for _ in range(layers)]).reshape(layers, ranks, per)
    placement = Placement(slots.astype(np.int32), experts)
    path = tmp_path_factory.mktemp("map") / "map.npz"
    save_placement(path, placement, {"from": "a test"})
    assert load_placement(path) == placement


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("slots", np.zeros((3, 4, 3), np.int32), "layer 0 holds expert 1 in no slot"),
        ("slots", LINEAR.slots - 1, "layer 0, rank 0, slot 0 holds expert -1"),
        ("slots", LINEAR.slots * np.nan, "dtype float64"),
        ("slots", LINEAR.slots[0], r"slots is int32 \[4, 3\]"),
        ("slots", LINEAR.slots[:0], r"slots is int32 \[0, 4, 3\]"),
        ("slots", LINEAR.slots[:, ::-1], "digest is"),
        ("experts", np.int64(9), "layer 0 holds expert 8 in no slot"),
        ("experts", np.float64(8), "experts is 8.0"),
        ("digest", np.array("0" * 16), "digest is '0000000000000000'"),
    ],
)
def test_a_malformed_placement_is_refused_by_name(
    tmp_path: Path, name: str, value: NDArray[np.generic], said: str
) -> None:
    path = tmp_path / "map.npz"
    save_placement(path, LINEAR)
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **arrays | {name: value})
    with pytest.raises(ConfigError, match=said) as refusal:
        load_placement(path)
    assert str(path) in str(refusal.value)
