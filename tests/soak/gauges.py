"""What a daemon holds of the machine: open files, threads, memory, time of a core, disk."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Held:
    """A process and its children, at one moment."""

    descriptors: int
    threads: int
    processes: int
    memory_bytes: int
    """Private to them: what would be free if they ended, shared libraries apart."""
    resident_bytes: int
    """Of the process alone, with what it shares."""


def held(pid: int) -> Held:
    """Look at a process and its children."""
    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    return Held(
        descriptors=sum(each.num_fds() for each in family),
        threads=sum(each.num_threads() for each in family),
        processes=len(family),
        memory_bytes=sum(each.memory_full_info().uss for each in family),
        resident_bytes=parent.memory_info().rss,
    )


def core_s(pid: int) -> float:
    """Time of a core that a process and its children have taken."""
    parent = psutil.Process(pid)
    times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def disk_bytes(folder: Path) -> int:
    """Size of all files below a folder, of which some may go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
