"""The offline README says what is so: its list of formats is written by this test.

`EPLBD_UPDATE=1` writes it anew.
"""

import os
from pathlib import Path

import numpy as np

from eplbd.core.placement import Placement
from eplbd.offline.formats.registry import FORMATS
from eplbd.offline.measure import Loads
from eplbd.offline.simulate import Judged, Result
from eplbd.traces.recording import TraceMeta, load_meta
from eplbd.traces.writer import recording

README = Path(__file__).resolve().parents[2] / "eplbd/offline/README.md"
BEGIN, END = "<!-- formats: begin -->\n", "<!-- formats: end -->"


def listed() -> str:
    lines = [
        "| format | holds | files | read | written | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in FORMATS.values():
        files = ", ".join(f"`{suffix}`" for suffix in one.suffixes if suffix) or "directory"
        read, written = ("yes" if can else "" for can in (one.read, one.write))
        lines.append(f"| `{one.name}` | {one.kind} | {files} | {read} | {written} | {one.says} |")
    return "\n".join(lines) + "\n"


def test_every_format_is_listed() -> None:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    found, after = rest.split(END)
    if os.environ.get("EPLBD_UPDATE"):
        README.write_text(before + BEGIN + listed() + END + after, encoding="utf-8")
        return
    assert found == listed(), "EPLBD_UPDATE=1 writes the list anew"


def test_every_figure_is_explained() -> None:
    placement = Placement.linear(1, 2, 1, 2)
    loads = Loads(np.ones((1, 1)), np.ones((1, 1)))
    row = Result("x", placement, 1, (Judged(1, placement, loads, 0, 0.0, "", None),)).row()
    text = README.read_text(encoding="utf-8")
    named = {"policy", "judged_windows", "moves", "first_moves_per_layer", "later_moves_per_layer"}
    assert [key for key in row if key not in named and f"`{key}`" not in text] == []


def test_every_array_of_a_chunk_is_explained(tmp_path: Path) -> None:
    meta = TraceMeta(layers=1, experts=2, ranks=1, slots_per_rank=2, node_of=(0,))
    with recording(tmp_path / "r", meta) as writer:
        writer.add(np.ones((1, 2), np.int32), forward=0, epoch=0)
    assert load_meta(tmp_path / "r") == meta
    text = README.read_text(encoding="utf-8")
    with np.load(tmp_path / "r" / "chunk-00000000.npz") as archive:
        assert [name for name in archive.files if f"`{name}`" not in text] == []
