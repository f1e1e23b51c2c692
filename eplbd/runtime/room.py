"""The room that recordings take: which of them go when there is no more of it, and in which order.

Owns that only recordings are deleted: a life's folder, the placements beside the lives, and a
group's folder if nothing else is in it. Must not know who records. It blocks, and belongs in a
thread.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from eplbd.core.events import Status
from eplbd.traces.recording import META, chunk_paths


def trim_lives(folder: Path, life: Path, most: int) -> int:
    """Delete a group's oldest other lives until the rest takes at most `most` bytes; how many."""
    sizes = {one: _size(one) for one in _lives(folder) if one != life}
    for oldest in sorted(sizes, key=_written_at):
        if sum(sizes.values()) <= most:
            break
        shutil.rmtree(oldest)
        del sizes[oldest]
    return sum(sizes.values())


def trim_groups(directory: Path, served: Collection[Path], most: int) -> Iterator[Path]:
    """Delete groups that are not `served`, the one that was recorded last last; each that went.

    Until the rest of them takes at most `most` bytes. served: folders of groups.
    """
    sizes = {
        folder: sum(map(_size, lives))
        for folder in directory.iterdir()
        if folder not in served and (lives := _lives(folder))
    }
    for oldest in sorted(sizes, key=lambda folder: max(map(_written_at, _lives(folder)))):
        if sum(sizes.values()) <= most:
            return
        _delete(oldest)
        del sizes[oldest]
        yield oldest


def _delete(folder: Path) -> None:
    for life in _lives(folder):
        shutil.rmtree(life)
    for status in Status:
        for suffix in (".npz", ".json"):
            (folder / status).with_suffix(suffix).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of somebody else's is in it
        folder.rmdir()


def _lives(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob(f"*/{META}")]


def _size(life: Path) -> int:
    return sum(path.stat().st_size for path in chunk_paths(life))


def _written_at(life: Path) -> int:
    return life.stat().st_mtime_ns
