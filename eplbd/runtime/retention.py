"""What of the state directory may go: records of groups that nobody serves any more.

Owns the order in which files are given up, and which are never. Only files that the daemon wrote by
itself are touched; what an operator saved is the operator's. It blocks, and belongs in a thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from eplbd.core.events import Note

PATTERNS = ("*.placement.new", "*.placement.refused", "*.placement")
"""Drafts that a crash left, records that could not be read, records; the worth rises."""

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Retention:
    """max_bytes: of all files of `PATTERNS`. keep_days: since a file was written; 0 is for ever."""

    max_bytes: int = 64 << 20
    keep_days: int = 90


@dataclass(frozen=True, slots=True)
class _Kept:
    path: Path
    size: int
    written_at: float
    worth: int


def prune(
    directory: Path, retention: Retention, spared: Collection[Path], now: float | None = None
) -> Iterator[Note]:
    """Delete what is too old, then what is too much, the least worth first; a note for each.

    spared: never deleted, however large: what is served now. now: seconds since the epoch.
    """
    now = time.time() if now is None else now
    kept = sorted(_listed(directory, spared), key=lambda one: (one.worth, one.written_at))
    used = sum(one.size for one in kept) + sum(_size(path) for path in spared)
    for one in kept:
        age_days = (now - one.written_at) / DAY_S
        old = retention.keep_days and age_days > retention.keep_days
        if not old and used <= retention.max_bytes:
            continue
        try:
            one.path.unlink()
        except OSError as error:
            yield Note("warning", "file not deleted", {"file": str(one.path), "reason": str(error)})
            continue
        used -= one.size
        reason = f"is {age_days:.0f} days old" if old else "no room in daemon.state_max_bytes"
        yield Note("info", "file deleted", {"file": str(one.path), "reason": reason})


def _listed(directory: Path, spared: Collection[Path]) -> Iterator[_Kept]:
    for worth, pattern in enumerate(PATTERNS):
        for path in directory.glob(pattern):
            if path in spared:
                continue
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            yield _Kept(path, status.st_size, status.st_mtime, worth)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
