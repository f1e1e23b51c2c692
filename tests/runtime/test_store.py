"""The state directory: what is written is read, damage is put aside, a full disk is said."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eplbd.core.events import Note, Persist, Restored
from eplbd.core.opening import Likeness
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.runtime.store import UnreadableRecordError, open_store, read_record

PLACEMENT = Placement.linear(3, 16, 4, 5)


def _persist(group: str = "default", term: int = 3, epoch: int = 41) -> Persist:
    return Persist(group, term, epoch, PLACEMENT)


def _stored(directory: Path, *persists: Persist) -> Path:
    """The one record's file, after these writes."""
    with open_store(directory) as store:
        for persist in persists or (_persist(),):
            store.write(persist)
    return next(directory.glob("*.placement"))


def _restored(directory: Path) -> list[Restored | Note]:
    with open_store(directory) as store:
        return list(store.restore())


def test_nothing_is_known_at_first(tmp_path: Path) -> None:
    assert _restored(tmp_path / "state") == []


def test_what_was_written_is_known_after_a_restart(tmp_path: Path) -> None:
    record = read_record(_stored(tmp_path))
    assert (record.group, record.term, record.epoch) == ("default", 3, 41)
    assert (record.experts, record.digest) == (16, PLACEMENT.digest)
    assert np.array_equal(record.slots, PLACEMENT.slots)
    assert _restored(tmp_path) == [Restored("default", 3, 41)]


def test_a_record_says_what_it_is_a_placement_of(tmp_path: Path) -> None:
    likeness = Likeness("c0ffee", (0, 0, 1, 1), "decode")
    _stored(tmp_path, Persist("default", 3, 41, PLACEMENT, likeness))
    (restored,) = _restored(tmp_path)
    assert isinstance(restored, Restored)
    assert restored.likeness == likeness
    assert restored.placement == PLACEMENT


def test_the_newest_record_replaces_the_one_before(tmp_path: Path) -> None:
    _stored(tmp_path, _persist(epoch=41), _persist(epoch=42))
    assert _restored(tmp_path) == [Restored("default", 3, 42)]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".placement"]


@pytest.mark.parametrize("group", ["../../etc/passwd", "a/b", "", "x" * 256, "ä\n", "a.b", "."])
def test_a_groups_name_cannot_leave_the_directory(tmp_path: Path, group: str) -> None:
    directory = tmp_path / "state"
    path = _stored(directory, _persist(group))
    assert path.parent == directory
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert _restored(directory) == [Restored(group, 3, 41)]


def test_groups_whose_names_look_alike_are_kept_apart(tmp_path: Path) -> None:
    _stored(tmp_path, _persist("a/b", epoch=1), _persist("a_b", epoch=2))
    events = _restored(tmp_path)
    assert Restored("a/b", 3, 1) in events
    assert Restored("a_b", 3, 2) in events


# --- damage -------------------------------------------------------------------------------------


def _refused(directory: Path, path: Path, words: str) -> None:
    before = path.read_bytes()
    (note,) = _restored(directory)
    assert isinstance(note, Note)
    assert note.level == "error"
    assert note.event == "stored placement refused, taken as absent"
    assert words in str(note.fields["reason"])
    aside = Path(str(note.fields["kept_as"]))
    assert aside.read_bytes() == before
    assert not path.exists()
    assert _restored(directory) == []


@pytest.mark.parametrize("keep", [0, 1, 17, 18, 33, 34, 37, 38, 60, 200, -1])
def test_a_truncated_record_is_put_aside(tmp_path: Path, keep: int) -> None:
    path = _stored(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    _refused(tmp_path, path, "does not begin with" if 0 <= keep < 18 else "checksum")


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    whole, chance = path.read_bytes(), random.Random(7)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UnreadableRecordError):
            read_record(path)


def test_another_releases_record_is_put_aside(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"placement 1\n", b"placement 2\n", 1))
    _refused(tmp_path, path, "does not begin with")


def test_a_copy_under_another_groups_name_is_put_aside(tmp_path: Path) -> None:
    """An old backup under a new name would bring an old term back."""
    path = _stored(tmp_path)
    path = path.rename(path.with_name("other-01234567.placement"))
    _refused(tmp_path, path, "is of group 'default'")


def test_a_giant_file_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "giant.placement"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    (note,) = _restored(tmp_path)
    assert isinstance(note, Note)
    assert "is larger than" in str(note.fields["reason"])


def test_a_damaged_record_does_not_hide_the_others(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    path.write_bytes(b"")
    _stored(tmp_path, _persist("other"))
    assert Restored("other", 3, 41) in _restored(tmp_path)


def test_what_a_kill_left_half_written_is_not_looked_at(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    path.with_name(f"{path.name}.new").write_bytes(b"half")
    assert _restored(tmp_path) == [Restored("default", 3, 41)]


# --- a disk that refuses ------------------------------------------------------------------------


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """No file may grow beyond 128 bytes; not for longer, since pytest may be writing one itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _filled(directory: Path) -> Iterator[None]:
    """A file system of its own below `directory`, which holds what was there, and no more."""
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here; the other case covers what a full disk does")
    try:
        for name, content in before.items():
            (directory / name).write_bytes(content)
        (directory / "filler").write_bytes(b"\0" * (64 * 1024 - 4096 * 2))
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize("disk", ["limited", "filled"])
def test_a_full_disk_is_said_and_leaves_the_record_before(tmp_path: Path, disk: str) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    _stored(directory)
    with _limited() if disk == "limited" else _filled(directory):
        with open_store(directory) as store:
            with pytest.raises(OSError, match=r"File too large|No space left") as caught:
                store.write(Persist("default", 4, 50, Placement.linear(58, 256, 32, 9)))
            assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
            assert list(store.restore()) == [Restored("default", 3, 41)]
        assert not list(directory.glob("*.new"))


def test_a_directory_that_cannot_be_made_says_whose_matter_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "missing" / "state", tmp_path / "file" / "state"):
        with pytest.raises(ConfigError, match=r"daemon.state_dir: cannot make .*/state"):
            _restored(directory)
    with pytest.raises(ConfigError, match=r"daemon.state_dir"):
        _restored(tmp_path / "file")


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    with (
        open_store(tmp_path),
        pytest.raises(ConfigError, match=rf"another eplbd .process {os.getpid()}. holds the state"),
    ):
        _restored(tmp_path)
