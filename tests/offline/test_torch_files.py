"""Files of torch.save: what SGLang writes is read, what could run code is refused and does not."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplbd.errors import ConfigError
from eplbd.offline.convert import convert
from eplbd.offline.formats.content import Context
from eplbd.offline.formats.torch_files import PRIVATE, read_pt
from eplbd.traces.archive import HeatTrace, load_trace, save_trace
from eplbd.traces.placements import save_placement
from tests.offline.makings import placements, traces

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, (f"open({str(self.sentinel)!r}, 'w').close()",))


@pytest.mark.parametrize("how", ["zip", "legacy", "bare pickle", "nested"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    sentinel, path = tmp_path / "ran", tmp_path / "bad.pt"
    bomb: object = Bomb(sentinel)
    match how:
        case "zip":
            torch.save(bomb, path)
        case "legacy":
            torch.save(bomb, path, _use_new_zipfile_serialization=False)
        case "nested":
            torch.save({"rank": 0, "logical_count": torch.ones(1, 2, 3), "x": [bomb]}, path)
        case _:
            path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(ConfigError, match="refused, nothing in it was run") as refusal:
        convert(path, tmp_path / "t.npz", context=Context(topk=2))
    assert str(path) in str(refusal.value)
    assert not sentinel.exists()
    assert not (tmp_path / "t.npz").exists()
    pickle.loads(pickle.dumps(Bomb(sentinel)))  # noqa: S301  # the bomb is live, so the test can fail
    assert sentinel.exists()


@pytest.mark.parametrize("cut", [0, 1, 100, -30])
def test_a_damaged_file_is_an_error_of_the_operator(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"logical_count": torch.ones(2, 3, 4)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match=str(path)):
        read_pt("x", path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_pt("x", tmp_path / "absent.pt")


@given(trace=traces(), first=st.integers(0, 3))
@settings(max_examples=15)
def test_sglang_stat_round_trip(
    trace: HeatTrace, first: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stat")
    save_trace(folder / "a.npz", trace)
    convert(folder / "a.npz", folder / "a.pt", context=Context(first_layer=first))
    convert(folder / "a.pt", folder / "b.npz", context=Context(topk=trace.topk))
    back = load_trace(folder / "b.npz")
    np.testing.assert_array_equal(back.heat, trace.heat)
    assert back.meta["layer_numbers"] == list(range(first, first + trace.layers))


def test_empty_rows_and_dense_layers_of_a_stat_dump_are_left_out(tmp_path: Path) -> None:
    counts = torch.zeros(4, 3, 5, dtype=torch.int32)
    counts[1:3, 1:] = 7
    torch.save(
        {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None},
        tmp_path / "s.pt",
    )
    context = Context(topk=2)
    convert(tmp_path / "s.pt", tmp_path / "t.npz", context=context)
    trace = load_trace(tmp_path / "t.npz")
    assert trace.heat.shape == (2, 2, 5)
    assert trace.meta["layer_numbers"] == [1, 2]
    assert any("2 of 4 rows are empty" in note for note in context.notes)
    assert any(r"layers [0] count nothing" in note for note in context.notes)
    with pytest.raises(ConfigError, match="give --topk"):
        convert(tmp_path / "s.pt", tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"logical_count": [1, 2]}, "logical_count is a list"),
        ({"logical_count": None}, "logical_count is missing"),
        ({"rank": 0}, "logical_count is missing"),
        ([1, 2], "logical_count is missing"),
        ({"logical_count": torch.ones(2, 3)}, r"logical_count is float32 \[2, 3\]"),
        ({"logical_count": torch.full((1, 2, 3), torch.nan)}, "logical_count is float32"),
        ({"logical_count": torch.zeros(2, 3, 4, dtype=torch.int32)}, "counts nothing"),
        ({"logical_count": -torch.ones(1, 2, 3, dtype=torch.int32)}, "expert 0 counts -1"),
    ],
)
def test_a_malformed_stat_dump_is_refused(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "s.pt")
    with pytest.raises(ConfigError, match=said) as refusal:
        convert(
            tmp_path / "s.pt", tmp_path / "t.npz", read_as="sglang-stat", context=Context(topk=1)
        )
    assert "s.pt" in str(refusal.value)


def passes(folder: Path, ranks: int, table: Any, counts: Any) -> None:  # noqa: ANN401
    """Dumps as `per_token` writes them; rank 1 misses the last pass."""
    folder.mkdir()
    for rank in range(ranks):
        records = [
            {
                "forward_pass_id": 10 + number,
                "rank": rank,
                "gatherer_key": "primary",
                "global_physical_count": count * (rank + 1),
                "input_ids": [1, 2, 3],
                "positions": [0, 1, 2],
            }
            for number, count in enumerate(counts)
            if rank != 1 or number < len(counts) - 1
        ]
        dump = {"records": records, "last_physical_to_logical_map": table}
        torch.save(dump, folder / f"expert_distribution_recorder_1.5_{rank}.pt")


def test_passes_are_summed_over_ranks_and_read_as_experts(tmp_path: Path) -> None:
    table = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 0], [2, 1, 0, 1]])
    counts = torch.randint(1, 50, (4, 3, 4), generator=torch.Generator().manual_seed(1))
    counts[:, 0] = 0
    passes(tmp_path / "p", 2, table, counts)
    context = Context(topk=2)
    convert(tmp_path / "p", tmp_path / "t.npz", context=context)
    trace = load_trace(tmp_path / "t.npz")
    expected = np.zeros((3, 2, 3), np.int64)
    for step in range(3):
        for layer in range(2):
            for slot in range(4):
                expert = int(table[layer + 1, slot])
                expected[step, layer, expert] += 3 * int(counts[step, layer + 1, slot])
    np.testing.assert_array_equal(trace.heat, expected)
    assert trace.meta["layer_numbers"] == [1, 2]
    assert any("1 of 4 passes" in note for note in context.notes)
    assert b"input_ids" not in (tmp_path / "t.npz").read_bytes()


def test_what_users_wrote_is_not_handed_on(tmp_path: Path) -> None:
    dump = {key: torch.arange(9) for key in PRIVATE} | {"kept": torch.arange(3)}
    torch.save({"records": [dump]}, tmp_path / "p.pt")
    found = read_pt("x", tmp_path / "p.pt")
    assert isinstance(found, dict)
    assert [*found["records"][0]] == ["kept"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"last_physical_to_logical_map": None}, "last_physical_to_logical_map is missing"),
        ({"last_physical_to_logical_map": torch.full((3, 4), 9)}, "names experts outside"),
        ({"records": 5}, "records is a int"),
        ({"records": [5]}, "record 0 is of pass None"),
        ({"records": [{"forward_pass_id": 1, "rank": 0}]}, "global_physical_count is missing"),
        ({"records": []}, "has no pass that every rank recorded"),
    ],
)
def test_a_malformed_pass_dump_is_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    passes(tmp_path / "p", 1, torch.tensor([[0, 1, 2, 0]] * 3), torch.ones(2, 3, 4).int())
    (path,) = (tmp_path / "p").iterdir()
    torch.save(torch.load(path) | change, path)
    with pytest.raises(ConfigError, match=said):
        convert(path, tmp_path / "t.npz", read_as="sglang-pass", context=Context(topk=1))


@given(placement=placements(duplicates=True))
@settings(max_examples=10)
def test_sglangs_location_as_a_tensor(
    placement: Any,  # noqa: ANN401  # drawn
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("loc")
    save_placement(folder / "m.npz", placement)
    convert(folder / "m.npz", folder / "m.pt", write_as="sglang-map")
    table = torch.load(folder / "m.pt", weights_only=True)["physical_to_logical_map"]
    np.testing.assert_array_equal(table.numpy().reshape(placement.slots.shape), placement.slots)


def test_deepseeks_load_is_one_window(tmp_path: Path) -> None:
    torch.save(torch.tensor([[3.0, 4, 5], [1, 0, 2]], dtype=torch.bfloat16), tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "t.npz", context=Context(topk=2))
    assert load_trace(tmp_path / "t.npz").heat.tolist() == [[[3, 4, 5], [1, 0, 2]]]
