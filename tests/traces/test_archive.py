"""Traces in one npz file: what is refused, and that what was written is read."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from eplbd.errors import ConfigError
from eplbd.traces.archive import HeatTrace, load_trace, save_trace

Arrays = dict[str, NDArray[np.generic]]


def arrays() -> Arrays:
    """A well-formed trace: 3 windows, 2 layers, 8 experts, top-2."""
    heat = np.random.default_rng(1).multinomial(400, [1 / 8] * 8, size=(3, 2))
    return {
        "heat": heat.astype(np.int32),
        "topk": np.array(2),
        "labels": np.array(["a", "", "c"]),
        "meta": np.array(json.dumps({"model": "made up"})),
    }


def saved(folder: Path, content: Arrays) -> Path:
    path = folder / "trace.npz"
    np.savez(path, **content)  # type: ignore[arg-type]  # numpy types its own keyword alike
    return path


def test_a_well_formed_trace_is_read(tmp_path: Path) -> None:
    content = arrays()
    trace = load_trace(saved(tmp_path, content))
    assert (trace.windows, trace.layers, trace.experts, trace.topk) == (3, 2, 8, 2)
    np.testing.assert_array_equal(trace.heat, content["heat"])
    assert [trace.label(w) for w in range(3)] == ["a", "window 1", "c"]
    assert trace.meta == {"model": "made up"}
    assert not trace.heat.flags.writeable


def test_a_thinned_trace_keeps_evenly_spaced_layers(tmp_path: Path) -> None:
    trace = load_trace(saved(tmp_path, arrays() | {"heat": np.arange(168).reshape(3, 7, 8) + 99}))
    thin = trace.thinned(3)
    np.testing.assert_array_equal(thin.heat, trace.heat[:, [0, 3, 6]])
    assert (thin.topk, thin.labels) == (trace.topk, trace.labels)
    assert not thin.heat.flags.writeable
    assert trace.thinned(7) is trace
    np.testing.assert_array_equal(trace.thinned(1).heat, trace.heat[:, :1])


def _without(name: str) -> Callable[[Arrays], object]:
    return lambda content: content.pop(name)


def _with(name: str, value: object) -> Callable[[Arrays], object]:
    return lambda content: content.update({name: np.asarray(value)})


def _heat_at(value: int) -> Callable[[Arrays], object]:
    def spoil(content: Arrays) -> None:
        heat = content["heat"].astype(np.int64)
        heat[2, 1, 5] = value
        content["heat"] = heat

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without("heat"), "has no heat"),
        (_without("labels"), "has no labels"),
        (_with("heat", np.ones((3, 2, 8))), "heat is float64"),
        (_with("heat", np.ones((3, 8), np.int32)), r"heat is int32 \[3, 8\]"),
        (_with("heat", np.ones((0, 2, 8), np.int32)), "none of them 0"),
        (_heat_at(-1), "window 2, layer 1, expert 5 is -1"),
        (_heat_at(1 << 60), "window 2, layer 1, expert 5 is 1152921504606846976"),
        (_with("topk", 0), r"topk is int64 0; expected one integer within 1\.\.8"),
        (_with("topk", 9), "topk is int64 9"),
        (_with("topk", 2.0), "topk is float64"),
        (_with("topk", [2]), "topk is int64"),
        (_with("labels", ["a", "b"]), r"labels is <U1 \[2\]"),
        (_with("labels", [1, 2, 3]), "labels is int64"),
        (_with("meta", "{"), "meta is not JSON"),
        (_with("meta", "[]"), "meta is a JSON list"),
        (_with("meta", 3), "meta is int64"),
    ],
)
def test_a_malformed_trace_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[Arrays], object], said: str
) -> None:
    content = arrays()
    spoil(content)
    path = saved(tmp_path, content)
    with pytest.raises(ConfigError, match=said) as refusal:
        load_trace(path)
    assert str(path) in str(refusal.value)


def test_what_is_no_npz_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    with pytest.raises(ConfigError, match="does not exist"):
        load_trace(path)
    path.write_text("not an archive", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trace(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trace(path)
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    path.write_bytes(single.getvalue())
    with pytest.raises(ConfigError, match="single array"):
        load_trace(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trace(path)


def test_a_pickle_inside_is_refused_and_not_run(tmp_path: Path) -> None:
    content = arrays()
    content["labels"] = np.array(["a", {}, "c"], dtype=object)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trace(saved(tmp_path, content))


@given(cut=st.integers(min_value=0, max_value=1 << 16))
def test_a_damaged_file_is_an_error_of_the_operator(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = saved(tmp_path_factory.mktemp("damaged"), arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(ConfigError):
        load_trace(path)


@given(
    heat=npst.arrays(
        np.int64,
        npst.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.integers(0, 1 << 50),
    ),
    data=st.data(),
)
def test_what_was_written_is_read(
    heat: NDArray[np.int64], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
    labels = data.draw(st.lists(text, min_size=len(heat), max_size=len(heat)))
    topk = data.draw(st.integers(1, heat.shape[2]))
    meta = data.draw(st.dictionaries(text, text | st.integers(0, 9)))
    path = tmp_path_factory.mktemp("written") / "trace.npz"
    save_trace(path, HeatTrace(heat, topk, tuple(labels), meta))
    back = load_trace(path)
    np.testing.assert_array_equal(back.heat, heat)
    assert (back.topk, back.labels, back.meta) == (topk, tuple(labels), meta)
    assert [*path.parent.iterdir()] == [path], "a draft was left behind"
