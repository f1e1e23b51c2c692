"""Which recordings go for want of room: whole groups, those first that ended first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eplbd.core.events import Status
from eplbd.runtime.recorder import CHUNK_STEPS
from eplbd.runtime.room import trim_groups, trim_lives
from eplbd.traces.recording import META
from tests.runtime.test_recorder import lives, opened, recording, steps

SIZE = 4_096


def life(folder: Path, name: str, written_at: int) -> Path:
    """A recording's folder as it is after a write at some second."""
    made = folder / name
    made.mkdir(parents=True)
    (made / META).write_text("{}")
    (made / "chunk-00000000.npz").write_bytes(bytes(SIZE))
    os.utime(made, (written_at, written_at))
    return made


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Three groups: `a` began first and was recorded last, `b` ended first."""
    life(tmp_path / "a", "1", 100)
    life(tmp_path / "a", "2", 900)
    life(tmp_path / "b", "1", 200)
    life(tmp_path / "c", "1", 300)
    for status in Status:
        (tmp_path / "b" / f"{status}.npz").touch()
        (tmp_path / "b" / f"{status}.json").touch()
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_group_that_ended_first_goes_first(traces: Path) -> None:
    assert [*trim_groups(traces, (), 4 * SIZE)] == []
    assert [*trim_groups(traces, (), 3 * SIZE)] == [traces / "b"]
    assert names(traces) == ["a", "c"]
    assert [*trim_groups(traces, (), 2 * SIZE)] == [traces / "c"]
    assert [*trim_groups(traces, (), 0)] == [traces / "a"]
    assert names(traces) == []


def test_a_group_that_is_served_never_goes_nor_takes_the_others_room(traces: Path) -> None:
    assert [*trim_groups(traces, {traces / "b"}, 3 * SIZE)] == []
    assert [*trim_groups(traces, {traces / "b"}, 0)] == [traces / "c", traces / "a"]
    assert names(traces) == ["b"]


def test_what_is_no_recording_is_left_alone(traces: Path) -> None:
    (traces / "b" / "notes.txt").touch()
    (traces / "mine").mkdir()
    (traces / "mine" / "trace.npz").write_bytes(bytes(SIZE))
    (traces / "loose.npz").write_bytes(bytes(SIZE))
    assert len([*trim_groups(traces, (), 0)]) == 3
    assert names(traces) == ["b", "loose.npz", "mine"]
    assert names(traces / "b") == ["notes.txt"]


def test_of_a_group_the_oldest_lives_go(traces: Path) -> None:
    group = traces / "a"
    life(group, "3", 1_000)
    assert trim_lives(group, group / "3", 2 * SIZE) == 2 * SIZE
    assert trim_lives(group, group / "3", SIZE) == SIZE
    assert names(group) == ["2", "3"], "the one that is written is no other"


def test_groups_that_come_and_go_share_the_room(tmp_path: Path) -> None:
    """Each run of the recorder serves another group, each of which may have the room of one."""
    one, total = 40_000, 120_000
    for number in range(8):
        with recording(tmp_path, one, total_max_bytes=total) as made:
            made.take(opened(group=f"g{number}"))
            for first in range(0, 3 * CHUNK_STEPS, CHUNK_STEPS):
                made.take(steps(first, CHUNK_STEPS, group=f"g{number}"))
    kept = [path.parent.name[:2] for path in lives(tmp_path)]
    files = (tmp_path / "traces").rglob("*.npz")
    assert sum(path.stat().st_size for path in files) <= total
    assert 1 < len(kept) < 8
    assert kept == [f"g{number}" for number in range(8)][-len(kept) :]
    with recording(tmp_path, one, total_max_bytes=total) as made:
        made.take(opened(group="g7", incarnation="2"))
        made.take(opened(group="g6", incarnation="2"))
    assert {path.parent.name[:2] for path in lives(tmp_path)} >= {"g6", "g7"}, "served again"
