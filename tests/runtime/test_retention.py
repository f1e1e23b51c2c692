"""What of the state directory goes, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

from eplbd.core.events import Note, Persist
from eplbd.core.placement import Placement
from eplbd.runtime.retention import DAY_S, Retention, prune
from eplbd.runtime.store import open_store

NOW = 1000 * DAY_S
PLACEMENT = Placement.linear(3, 16, 4, 5)


def _file(directory: Path, name: str, *, size: int = 100, days: float = 0.0) -> Path:
    path = directory / name
    path.write_bytes(bytes(size))
    os.utime(path, times=(NOW - days * DAY_S,) * 2)
    return path


def _pruned(directory: Path, retention: Retention, *spared: Path) -> list[str]:
    """Names of the files that are gone."""
    before = {path.name for path in directory.iterdir()}
    notes = list(prune(directory, retention, spared, NOW))
    gone = before - {path.name for path in directory.iterdir()}
    assert all(isinstance(note, Note) for note in notes)
    assert {Path(str(note.fields["file"])).name for note in notes} == gone
    return sorted(gone)


def test_what_is_too_old_goes_even_if_there_is_room(tmp_path: Path) -> None:
    _file(tmp_path, "old.placement", days=91)
    _file(tmp_path, "older.placement.refused", days=92)
    _file(tmp_path, "young.placement", days=89)
    assert _pruned(tmp_path, Retention()) == ["old.placement", "older.placement.refused"]


def test_nothing_is_ever_too_old_where_the_operator_says_so(tmp_path: Path) -> None:
    _file(tmp_path, "old.placement", days=900)
    assert _pruned(tmp_path, Retention(keep_days=0)) == []


def test_the_least_worth_goes_first_and_no_more_than_needed(tmp_path: Path) -> None:
    _file(tmp_path, "a.placement", days=3)
    _file(tmp_path, "b.placement", days=2)
    _file(tmp_path, "c.placement.refused", days=1)
    _file(tmp_path, "d.placement.new", days=0)
    for most, gone in ((400, 0), (399, 1), (300, 1), (299, 2), (200, 2), (150, 3), (50, 4)):
        order = ["d.placement.new", "c.placement.refused", "a.placement", "b.placement"]
        assert _pruned(tmp_path, Retention(max_bytes=most)) == sorted(order[:gone])
        for name, days in (("a.placement", 3), ("b.placement", 2), ("c.placement.refused", 1)):
            _file(tmp_path, name, days=days)
        _file(tmp_path, "d.placement.new")


def test_what_is_served_now_stays_and_counts(tmp_path: Path) -> None:
    mine = _file(tmp_path, "mine.placement", size=1000, days=500)
    _file(tmp_path, "other.placement", days=1)
    assert _pruned(tmp_path, Retention(max_bytes=1050), mine) == ["other.placement"]
    assert _pruned(tmp_path, Retention(max_bytes=10), mine) == []


def test_what_others_put_there_is_left_alone(tmp_path: Path) -> None:
    for name in ("eplbd.lock", "policies.json", "notes.txt", "saved.npz"):
        _file(tmp_path, name, size=10_000, days=900)
    (tmp_path / "traces").mkdir()
    (tmp_path / "a.placement").symlink_to(tmp_path / "nowhere")
    assert _pruned(tmp_path, Retention(max_bytes=0)) == ["a.placement"]


def test_a_file_that_cannot_go_costs_a_line_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "folder.placement").mkdir()
    _file(tmp_path, "b.placement", days=2)
    first, second = prune(tmp_path, Retention(max_bytes=0), (), NOW)
    assert {first.level, second.level} == {"warning", "info"}
    assert not (tmp_path / "b.placement").exists()


def test_many_groups_stay_within_the_room(tmp_path: Path) -> None:
    """Names of groups come from workers: a thousand of them must not fill the disk."""
    size = 0
    for life in range(8):
        with open_store(tmp_path, Retention(max_bytes=5000)) as store:
            for group in range(4):
                store.write(Persist(f"group {life} {group}", 1, 1, PLACEMENT))
            list(store.tidy())
            present = list(tmp_path.glob("*.placement"))
            size = max(size, sum(path.stat().st_size for path in present))
            assert len([path for path in present if path.name.startswith(f"group_{life}")]) == 4
    assert size <= 5000
