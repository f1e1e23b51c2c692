"""Placements in foreign formats: round trips, and refusals that name file and place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.offline.convert import convert
from eplbd.offline.formats import ascend, omni, registry, sglang, trtllm
from eplbd.offline.formats.content import Context, Mapped
from eplbd.traces.placements import load_placement, save_placement
from tests.offline.makings import placements

LINEAR = Placement.linear(2, 6, 4, 2)
Document = dict[str, Any]


def linear(tmp_path: Path) -> Path:
    path = tmp_path / "linear.npz"
    save_placement(path, LINEAR)
    return path


@given(placement=placements(), first=st.integers(0, 5))
def test_round_trips(
    placement: Placement, first: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("maps")
    source = folder / "map.npz"
    save_placement(source, placement)
    numbers = tuple(range(first, first + placement.layers))
    for name, suffix in (("ascend-map", ".json"), ("trtllm-map", ".yaml"), ("placement", ".npz")):
        there, back = folder / f"there{suffix}", folder / "back.npz"
        context = Context(ranks=placement.ranks, first_layer=first)
        convert(source, there, write_as=name, context=context)
        convert(there, back, read_as=name, context=Context(ranks=placement.ranks))
        assert load_placement(back) == placement, name
        if name != "ascend-map":  # it counts MoE layers only
            content = registry.source(back, None).read(back, Context())  # type: ignore[misc]
            assert isinstance(content, Mapped)
            assert content.layer_numbers == numbers, name


@given(placement=placements())
def test_omni_placement_keeps_who_holds_what(
    placement: Placement, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("maps") / "map.npy"
    context = Context()
    omni.write(path, Mapped(placement, ()), context)
    assert any("LOSSY" in note for note in context.notes)
    back = omni.read(path, Context())
    assert isinstance(back, Mapped)
    np.testing.assert_array_equal(back.placement.hosts(), placement.hosts())
    np.testing.assert_array_equal(np.sort(placement.slots, axis=2), back.placement.slots)


@given(placement=placements(duplicates=True), first=st.integers(0, 3))
def test_sglang_gets_a_row_for_every_layer_of_the_model(
    placement: Placement, first: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("maps") / "location.json"
    numbers = tuple(range(first, first + placement.layers))
    sglang.write_location(path, Mapped(placement, numbers), Context())
    table = np.array(json.loads(path.read_text(encoding="utf-8"))["physical_to_logical_map"])
    assert table.shape == (first + placement.layers, placement.ranks * placement.slots_per_rank)
    np.testing.assert_array_equal(table[first:].reshape(placement.slots.shape), placement.slots)
    assert all(set(row) == set(range(placement.experts)) for row in table)


def ascend_document(tmp_path: Path) -> Document:
    path = tmp_path / "map.json"
    ascend.write(path, Mapped(LINEAR, ()), Context())
    document: Document = json.loads(path.read_text(encoding="utf-8"))
    return document


def _device(document: Document, **changes: object) -> None:
    document["layer_list"][1]["device_list"][2].update(changes)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: d.update(moe_layer_count=3), "moe_layer_count is 3, layer_list has 2"),
        (lambda d: d.update(moe_layer_count="2"), r"\$\.moe_layer_count"),
        (lambda d: d.pop("layer_list"), "layer_list"),
        (lambda d: d["layer_list"][1].update(layer_id=7), r"layer_list has the ids \[0, 7\]"),
        (lambda d: d["layer_list"][1].update(device_count=3), "expected device_count, 3"),
        (lambda d: d["layer_list"][0].update(extra=1), "extra"),
        (lambda d: _device(d, device_id=1), r"layer_id 1: device_list has the ids \[0, 1, 1, 3\]"),
        (lambda d: _device(d, device_expert=[4]), "layer 1, rank 2 holds 1 experts; expected 2"),
        (lambda d: _device(d, device_expert=[-1, 5]), "device_expert"),
        (lambda d: _device(d, device_expert=[4.5, 5]), "device_expert"),
        (lambda d: _device(d, device_expert=[4, 99]), "names expert 99"),
        (lambda d: _device(d, device_expert=[4, 4]), "layer 1 holds expert 5 in no slot"),
        (lambda d: d["layer_list"][1]["device_list"].pop(), "expected device_count, 4"),
        (lambda d: d.update(layer_list=[], moe_layer_count=0), "is empty"),
    ],
)
def test_a_malformed_expert_map_is_refused(
    tmp_path: Path, spoil: Callable[[Document], object], said: str
) -> None:
    document = ascend_document(tmp_path)
    spoil(document)
    path = tmp_path / "map.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as refusal:
        convert(path, tmp_path / "out.npz", read_as="ascend-map")
    assert str(path) in str(refusal.value)
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("cut", [0, 1, 40, -2])
def test_a_truncated_expert_map_is_refused(tmp_path: Path, cut: int) -> None:
    ascend_document(tmp_path)
    path = tmp_path / "map.json"
    path.write_text(path.read_text(encoding="utf-8")[:cut], encoding="utf-8")
    with pytest.raises(ConfigError, match=str(path)):
        convert(path, tmp_path / "out.npz", read_as="ascend-map")


def test_an_expert_twice_on_a_device_is_not_written_for_vllm_ascend(tmp_path: Path) -> None:
    slots = LINEAR.slots.copy()
    slots[1, 0] = 1
    slots[1, 3] = (0, 1)
    path = tmp_path / "map.npz"
    save_placement(path, Placement(slots, 6))
    with pytest.raises(ConfigError, match="layer 1, device 0 holds expert 1 twice"):
        convert(path, tmp_path / "map.json", write_as="ascend-map")


def trt_document(tmp_path: Path) -> tuple[Path, Document]:
    path = tmp_path / "map.yaml"
    trtllm.write_map(path, Mapped(LINEAR, (3, 5)), Context())
    document: Document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return path, document


def test_trt_layers_keep_their_numbers(tmp_path: Path) -> None:
    path, document = trt_document(tmp_path)
    assert set(document["initial_global_assignments"]) == {3, 5}
    assert document["num_slots"] == 8
    back = trtllm.read_map(path, Context(ranks=4))
    assert isinstance(back, Mapped)
    assert back.layer_numbers == (3, 5)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: d.update(num_slots=9), "9 slots over 4 ranks; expected equal blocks"),
        (lambda d: d.update(num_slots=4), "layer 3 has 8 slots; expected num_slots, 4"),
        (lambda d: d.update(slots=8), "slots"),
        (lambda d: d.update(initial_global_assignments={}), "is empty"),
        (lambda d: d["initial_global_assignments"].update(x=[1]), "initial_global_assignments"),
        (lambda d: d["initial_global_assignments"].update({3: [0] * 8}), "holds expert 1 in no"),
        (lambda d: d["initial_global_assignments"].update({3: [None] * 8}), "got `null`"),
    ],
)
def test_a_malformed_yaml_is_refused(
    tmp_path: Path, spoil: Callable[[Document], object], said: str
) -> None:
    path, document = trt_document(tmp_path)
    spoil(document)
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as refusal:
        convert(path, tmp_path / "out.npz", context=Context(ranks=4))
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_slots: [", "not YAML"),
        ("num_slots: 8\nnum_slots: 8\n", r"map.yaml:2: num_slots is given a second time"),
        ("", "map.yaml"),
        ("- 1", "map.yaml"),
        ("!!python/object/apply:os.system ['touch ran']", "not YAML"),
        ("a: &a [x]\nb: [*a, *a]\n", "map.yaml"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        convert(path, tmp_path / "out.npz", context=Context(ranks=4))


def test_a_repeated_layer_is_refused_with_its_line(tmp_path: Path) -> None:
    path, _ = trt_document(tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:3], lines[2], *lines[3:]]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"map\.yaml:4: 3 is given a second time"):
        convert(path, tmp_path / "out.npz", context=Context(ranks=4))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((2, 2, 4), np.nan), "values beside 0 and 1"),
        (np.full((2, 2, 4), -1), "values beside 0 and 1"),
        (np.full((2, 2, 4), "a"), "values beside 0 and 1"),
        (np.ones((2, 4), np.int8), r"holds \[2, 4\]"),
        (np.ones((2, 0, 4), np.int8), r"holds \[2, 0, 4\]"),
        (np.zeros((2, 2, 4), np.int8), "device 0 holds 0 experts"),
        (np.eye(4, dtype=np.int8)[[0, 1, 2, 2], None], "layer 0 holds expert 3 in no slot"),
        (np.array([[[1, 1, 1, 0]], [[0, 0, 0, 1]]]), "device 1 holds 1 experts of layer 0"),
    ],
)
def test_a_malformed_omni_map_is_refused(
    tmp_path: Path, array: np.ndarray[Any, Any], said: str
) -> None:
    path = tmp_path / "map.npy"
    np.save(path, array)
    with pytest.raises(ConfigError, match=said) as refusal:
        convert(path, tmp_path / "out.npz", read_as="omni-map")
    assert str(path) in str(refusal.value)


def test_an_object_array_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "map.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        convert(path, tmp_path / "out.npz", read_as="omni-map")


def test_a_format_is_guessed_only_where_it_shows(tmp_path: Path) -> None:
    source = linear(tmp_path)
    with pytest.raises(ConfigError, match="Give --to, one of ascend-map, sglang-map"):
        convert(source, tmp_path / "out.json")
    with pytest.raises(ConfigError, match="one of placement, ascend-map"):
        convert(source, tmp_path / "out.bin")
    with pytest.raises(ConfigError, match="unknown format `ascendmap`; did you mean `ascend-map`"):
        convert(source, tmp_path / "out.json", write_as="ascendmap")
    with pytest.raises(ConfigError, match="trtllm-stats is only read"):
        convert(source, tmp_path / "out.json", write_as="trtllm-stats")
    with pytest.raises(ConfigError, match="sglang-map is only written"):
        convert(source, tmp_path / "out.json", read_as="sglang-map")
    with pytest.raises(ConfigError, match="holds a trace; the input is a placement"):
        convert(source, tmp_path / "out.npz", write_as="trace")
    unknown = tmp_path / "what.bin"
    unknown.touch()
    with pytest.raises(ConfigError, match="its format does not show; give --from"):
        convert(unknown, tmp_path / "out.npz")


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        convert(linear(tmp_path), tmp_path / "absent" / "out.npz")
