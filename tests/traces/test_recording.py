"""Recorded traces: chunks are whole, capped and continued; what is damaged is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError, LocalProtocolError
from eplbd.traces.recording import Chunk, TraceMeta, chunk_paths, load_chunk, load_chunks, load_meta
from eplbd.traces.writer import TraceWriter, recording

META = TraceMeta(
    model="made up", layers=2, experts=8, topk=2, ranks=4, slots_per_rank=3, node_of=(0, 0, 1, 1)
)
LINEAR = Placement.linear(2, 8, 4, 3)


def heat(seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 70_000, (2, 8), dtype=np.int32)


def wrote(directory: Path, forwards: range, **how: int) -> list[Chunk]:
    with recording(directory, META, **how) as writer:
        writer.placed(3, LINEAR)
        for forward in forwards:
            writer.add(heat(forward), forward=forward, epoch=3, phase=forward % 4, tokens=forward)
    return [*load_chunks(directory, load_meta(directory))]


def test_steps_come_back_with_the_placement_they_ran_under(tmp_path: Path) -> None:
    chunks = wrote(tmp_path / "t", range(10), chunk_steps=4)
    assert load_meta(tmp_path / "t") == META
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    forward = 0
    for chunk in chunks:
        assert chunk.placements == {3: LINEAR}
        for step in range(len(chunk)):
            np.testing.assert_array_equal(chunk.counts[step], heat(forward))
            assert (chunk.forward[step], chunk.tokens[step]) == (forward, forward)
            assert (chunk.epoch[step], chunk.phase[step], chunk.dummy[step]) == (
                3,
                forward % 4,
                False,
            )
            forward += 1
        assert not chunk.counts.flags.writeable


@given(
    order=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20),
    largest=st.sampled_from([0, 255, 256, 65_536, 2**31 - 1]),
)
def test_any_order_of_forwards_is_read_in_ascending_order(
    order: list[int], largest: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("any") / "t"
    with recording(directory, META) as writer:
        for i, forward in enumerate(order):
            step = np.full((2, 8), largest, dtype=np.int32)
            step[0, 0] = i
            writer.add(step, forward=forward, epoch=0, dummy=i % 2 == 0)
    (chunk,) = load_chunks(directory, META)
    last = {forward: i for i, forward in enumerate(order)}
    assert chunk.forward.tolist() == sorted(last)
    assert chunk.counts[:, 0, 0].tolist() == [last[f] for f in sorted(last)]
    assert (chunk.counts[:, 1] == largest).all()
    assert chunk.tokens.tolist() == [-1] * len(chunk)
    assert chunk.placements == {}


def test_the_oldest_chunks_go_when_the_disk_is_full_enough(tmp_path: Path) -> None:
    wrote(tmp_path / "t", range(8), chunk_steps=4)
    one = chunk_paths(tmp_path / "t")[0].stat().st_size
    with recording(tmp_path / "u", META, chunk_steps=4, max_bytes=3 * one) as writer:
        for forward in range(40):
            writer.add(heat(forward), forward=forward, epoch=0)
        assert writer.bytes == sum(p.stat().st_size for p in chunk_paths(tmp_path / "u"))
        assert writer.bytes <= 3 * one
        assert writer.dropped_chunks
    chunks = [*load_chunks(tmp_path / "u", META)]
    assert chunks[-1].forward[-1] == 39
    assert chunks[0].forward[0] == 4 * writer.dropped_chunks


def test_a_recording_is_continued_after_a_crash(tmp_path: Path) -> None:
    directory = tmp_path / "t"
    wrote(directory, range(4), chunk_steps=4)
    draft = directory / "chunk-00000001.npz.new"
    draft.write_bytes(b"half of it")
    (directory / "notes.new").write_text("not ours", encoding="utf-8")
    chunks = wrote(directory, range(7, 9), chunk_steps=4)
    assert [chunk.forward.tolist() for chunk in chunks] == [[0, 1, 2, 3], [7, 8]]
    assert not draft.exists()
    assert (directory / "notes.new").exists()


def test_the_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    wrote(tmp_path / "t", range(1))
    with pytest.raises(ConfigError, match=r"another group or model \(model, ranks"):
        TraceWriter(
            tmp_path / "t", msgspec.structs.replace(META, model="b", ranks=2, node_of=(0, 0))
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        TraceWriter(tmp_path / "full", META)
    with pytest.raises(ConfigError, match="cannot be used"):
        TraceWriter(tmp_path / "absent" / "t", META)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heat": np.zeros((2, 7), np.int32)},
        {"heat": np.zeros((2, 8))},
        {"heat": np.full((2, 8), -1)},
        {"phase": 4},
        {"forward": -1},
        {"epoch": -1},
    ],
)
def test_a_step_that_is_none_is_the_callers_fault(tmp_path: Path, wrong: dict[str, object]) -> None:
    writer = TraceWriter(tmp_path / "t", META)
    step: dict[str, object] = {"heat": heat(0), "forward": 0, "epoch": 0, "phase": 0, **wrong}
    with pytest.raises(LocalProtocolError):
        writer.add(**step)  # type: ignore[arg-type]  # that is the point
    writer.close()
    assert not chunk_paths(tmp_path / "t")


def _chunk(directory: Path) -> tuple[Path, dict[str, NDArray[np.generic]]]:
    wrote(directory, range(3))
    (path,) = chunk_paths(directory)
    with np.load(path) as archive:
        return path, dict(archive)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("counts", np.ones((3, 2, 8)), "counts is float64"),
        ("counts", np.ones((3, 2, 8), np.int32), "counts is int32"),
        ("counts", np.ones((3, 2, 7), np.uint8), r"counts is uint8 \[3, 2, 7\]"),
        ("counts", np.ones((0, 2, 8), np.uint8), r"counts is uint8 \[0, 2, 8\]"),
        ("counts", np.uint8(1), r"counts is uint8 \[\]"),
        ("forward", np.array([1, 1, 2]), "forward of step 1 is 1; expected ascending"),
        ("forward", np.array([-1, 1, 2]), "forward of step 0 is -1"),
        ("forward", np.arange(4), r"forward is int64 \[4\]"),
        ("epoch", np.array([0, 0, -7]), "epoch of step 2 is -7"),
        ("phase", np.array([0, 9, 0], np.uint8), r"phase of step 1 is 9; expected 0\.\.3"),
        ("tokens", np.array([0.5, 1, 2]), "tokens is float64"),
        ("tokens", np.array([0, -2, 2]), "tokens of step 1 is -2"),
        ("dummy", np.zeros(3), "dummy is float64"),
        ("placement_epoch", np.array([1, 1]), "placement_epoch is int64"),
        ("placements", np.zeros((2, 2, 4, 3), np.int32), "placements is int32"),
        ("placements", np.zeros((1, 2, 4, 3), np.int32), "epoch 3: placement: layer 0"),
        ("placements", np.full((1, 2, 4, 3), 8, np.int32), "layer 0, rank 0, slot 0 holds expert"),
        ("placements", np.full((1, 2, 4, 3), np.nan), "epoch 3: placement: dtype float64"),
    ],
)
def test_a_malformed_chunk_is_refused_by_name(
    tmp_path: Path, name: str, value: NDArray[np.generic], said: str
) -> None:
    path, arrays = _chunk(tmp_path / "t")
    arrays[name] = value
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy types its own keyword alike
    with pytest.raises(ConfigError, match=said) as refusal:
        load_chunk(path, META)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda meta: meta.pop("layers"), "layers"),
        (lambda meta: meta.update(version=2), "version"),
        (lambda meta: meta.update(color="red"), "color"),
        (lambda meta: meta.update(ranks=0), "ranks"),
        (lambda meta: meta.update(node_of=[0]), "node_of"),
        (lambda meta: meta.update(phases=["a"]), "phases"),
        (lambda meta: meta.update(layer_numbers=[1]), "layer_numbers"),
    ],
)
def test_a_malformed_meta_is_refused_by_field(
    tmp_path: Path, spoil: Callable[[dict[str, object]], object], said: str
) -> None:
    wrote(tmp_path / "t", range(1))
    path = tmp_path / "t" / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    spoil(meta)
    path.write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as refusal:
        load_meta(tmp_path / "t")
    assert str(path) in str(refusal.value)


def test_a_pickle_inside_is_refused(tmp_path: Path) -> None:
    path, arrays = _chunk(tmp_path / "t")
    arrays["counts"] = np.array([{}], dtype=object)
    np.savez(path, **arrays)  # type: ignore[arg-type]  # as above
    with pytest.raises(ConfigError, match="cannot be read"):
        load_chunk(path, META)
