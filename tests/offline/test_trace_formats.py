"""Traces in foreign formats that need no torch: round trips and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from eplbd.errors import ConfigError
from eplbd.offline.convert import convert
from eplbd.offline.formats.content import Context
from eplbd.traces.archive import HeatTrace, load_trace
from eplbd.traces.recording import TraceMeta
from eplbd.traces.writer import recording
from tests.offline.makings import skewed, traces

META = {"num_experts": 5, "num_experts_per_token": 2}
Tensors = dict[str, np.ndarray[Any, Any]]


def statistics(folder: Path, heat: np.ndarray[Any, Any], ranks: int, first: int = 7) -> None:
    """What TensorRT-LLM writes for `[iterations, layers, experts]`, split over ranks."""
    folder.mkdir()
    meta = {"num_experts": heat.shape[2], "num_experts_per_token": 2, "other": 1}
    (folder / "meta_info.json").write_text(json.dumps(meta), encoding="utf-8")
    for rank in range(ranks):
        part = heat * (rank + 1)
        tensors = {
            f"{first + i}_{3 + layer}": np.ascontiguousarray(part[i, layer])
            for i in range(heat.shape[0])
            for layer in range(heat.shape[1])
        }
        safetensors.numpy.save_file(tensors, folder / f"rank{rank}.safetensors")
        safetensors.numpy.save_file({"1_1": part[0, 0]}, folder / f"rank{rank}_raw.safetensors")


@given(
    seed=st.integers(0, 99),
    iterations=st.integers(1, 4),
    layers=st.integers(1, 3),
    ranks=st.integers(1, 3),
)
def test_trt_statistics_are_summed_over_ranks(
    seed: int, iterations: int, layers: int, ranks: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stats")
    rng = np.random.default_rng(seed)
    heat = rng.integers(0, 1000, (iterations, layers, 5), dtype=np.int32)
    statistics(folder / "s", heat, ranks)
    convert(folder / "s", folder / "t.npz")
    trace = load_trace(folder / "t.npz")
    np.testing.assert_array_equal(trace.heat, heat * sum(range(1, ranks + 1)))
    assert trace.topk == 2
    assert trace.meta["layer_numbers"] == list(range(3, 3 + layers))
    assert trace.meta["rows"] == "steps"


def _rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    path = folder / "rank1.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "meta_info.json").unlink(), "meta_info.json: cannot be read"),
        (lambda f: (f / "meta_info.json").write_text("{}"), "num_experts"),
        (lambda f: (f / "meta_info.json").write_text('{"num_experts": -1}'), "num_experts"),
        (lambda f: [p.unlink() for p in f.glob("rank?.safetensors")], "holds no rank"),
        (lambda f: (f / "rank1.safetensors").write_bytes(b"\xff" * 40), "rank1.safetensors"),
        (lambda f: _rewrite(f, lambda t: t.pop("8_3")), "iteration 8 of layer 3 is not in all"),
        (lambda f: _rewrite(f, lambda t: t.update(total=t["8_3"])), "key 'total'"),
        (lambda f: _rewrite(f, lambda t: t.update({"8_3": np.ones(4, np.int32)})), "8_3 is int32"),
        (lambda f: _rewrite(f, lambda t: t.update({"8_3": np.ones(5)})), "8_3 is float64"),
        (lambda f: _rewrite(f, lambda t: t.update({"8_3": -np.ones(5, np.int32)})), "negative"),
    ],
)
def test_malformed_trt_statistics_are_refused(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    folder = tmp_path / "s"
    statistics(folder, np.ones((3, 2, 5), np.int32), 2)
    spoil(folder)
    with pytest.raises(ConfigError, match=said):
        convert(folder, tmp_path / "t.npz", read_as="trtllm-stats")


def test_a_gap_in_trt_iterations_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    statistics(folder, np.ones((3, 2, 5), np.int32), 1)
    path = folder / "rank0.safetensors"
    tensors = safetensors.numpy.load_file(path)
    del tensors["8_3"], tensors["8_4"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"iterations \[7, 9\]; expected no gap"):
        convert(folder, tmp_path / "t.npz")


@given(trace=traces())
def test_a_trace_file_is_rewritten_as_it_was(
    trace: HeatTrace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from eplbd.traces.archive import save_trace

    folder = tmp_path_factory.mktemp("traces")
    save_trace(folder / "a.npz", trace)
    convert(folder / "a.npz", folder / "b.npz")
    back = load_trace(folder / "b.npz")
    np.testing.assert_array_equal(back.heat, trace.heat)
    assert (back.topk, back.labels, back.meta) == (trace.topk, trace.labels, trace.meta)


def test_a_recording_becomes_a_trace_of_steps_without_its_dummies(tmp_path: Path) -> None:
    meta = TraceMeta(
        layers=2, experts=6, ranks=2, slots_per_rank=4, node_of=(0, 0), layer_numbers=(1, 2)
    )
    steps = skewed(9, 2, 6, sigma=1, tokens=200)
    with recording(tmp_path / "r", meta, chunk_steps=4) as writer:
        for forward, heat in enumerate(steps):
            writer.add(heat, forward=forward, epoch=0, dummy=forward == 4)
    with pytest.raises(ConfigError, match="give --topk"):
        convert(tmp_path / "r", tmp_path / "t.npz")
    context = Context(topk=2)
    convert(tmp_path / "r", tmp_path / "t.npz", context=context)
    trace = load_trace(tmp_path / "t.npz")
    np.testing.assert_array_equal(trace.heat, np.delete(steps, 4, axis=0))
    assert trace.meta["layer_numbers"] == [1, 2]
    assert any("epochs" in note for note in context.notes)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([[1.5, 2]]), "layer 0, expert 0 is 1.5; expected whole numbers"),
        (np.array([[1, np.nan]]), "layer 0, expert 1 is nan"),
        (np.array([[1, -2]]), "layer 0, expert 1 counts -2"),
        (np.array([["a", "b"]]), "counts are <U1"),
        (np.array([1, 2]), r"holds \[2\]"),
        (np.zeros((0, 4), np.int32), "none of them 0"),
    ],
)
def test_a_malformed_load_is_refused(
    tmp_path: Path, array: np.ndarray[Any, Any], said: str
) -> None:
    path = tmp_path / "load.npy"
    np.save(path, array)
    with pytest.raises(ConfigError, match=said) as refusal:
        convert(path, tmp_path / "t.npz", read_as="deepseek-load", context=Context(topk=1))
    assert str(path) in str(refusal.value)


def test_a_load_is_one_window(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", np.array([[3.0, 4, 5], [1, 0, 2]], np.float32))
    with pytest.raises(ConfigError, match="give --topk"):
        convert(tmp_path / "load.npy", tmp_path / "t.npz")
    convert(tmp_path / "load.npy", tmp_path / "t.npz", context=Context(topk=2))
    assert load_trace(tmp_path / "t.npz").heat.tolist() == [[[3, 4, 5], [1, 0, 2]]]
