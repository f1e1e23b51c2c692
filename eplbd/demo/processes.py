"""The processes of a run: one daemon, one worker per rank, all gone when the run is.

Owns their start, their lines and their end. It must not know what the lines mean for the run.

Each child has a session of its own, so that Ctrl-C in a terminal reaches the run alone, and ends
with the run even if that is killed: workers when their stdin closes, the daemon by `leash`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Self, TypeAlias

from eplbd.demo import reports as r
from eplbd.demo.settings import daemon_config

DAEMON = -1
"""Number of the daemon where workers go by their rank."""

END_S = 3.0
"""Between asking a process to end and killing it."""

_PYTHON = (sys.executable, "-P", "-m")
"""-P: the directory that the demo happens to run in must not shadow modules."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A worker said something."""

    report: r.Report


@dataclass(frozen=True, slots=True)
class Logged:
    """The daemon wrote a line."""

    line: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A process is gone. who: its rank, or `DAEMON`. status: negative for a signal."""

    who: int
    status: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Somebody asked the run to end, with this signal."""

    number: int


Event: TypeAlias = Reported | Logged | Ended | Interrupted


class Processes:
    """The children of one run; leave the block and they are gone.

    folder: for the daemon's files and what workers write to stderr. Events of all children arrive
    in one queue.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.events: SimpleQueue[Event] = SimpleQueue()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End whatever still runs, the politest way that works, and wait for it."""
        for child in self._children.values():
            if child.stdin is not None:
                with contextlib.suppress(OSError):
                    child.stdin.close()
            child.terminate()
        for child in self._children.values():
            try:
                child.wait(END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for thread in self._threads:
            thread.join()
        for child in self._children.values():
            if child.stdout is not None:
                child.stdout.close()

    def start_daemon(self, policy: str) -> None:
        """Start `eplbd serve` with a configuration of its own. The operator's is not looked at."""
        file = self._folder / "eplbd.toml"
        file.write_text(daemon_config(self._folder), encoding="utf-8")
        serve = ("eplbd", "serve", "--config", str(file), "-o", f"policy.name={policy}")
        command = [*_PYTHON, "eplbd.demo.leash", *_PYTHON, *serve]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EPLBD_")}
        child = subprocess.Popen(  # noqa: S603 - no shell: the arguments are ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self._follow(DAEMON, child, lambda line: self.events.put(Logged(line)))

    def start_worker(self, assignment: r.Assignment) -> None:
        """Start one rank."""
        with self._noise(assignment.rank).open("wb") as noise:
            child = subprocess.Popen(  # noqa: S603 - no shell: the arguments are ours
                [*_PYTHON, "eplbd.demo.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                start_new_session=True,
            )
        self._follow(
            assignment.rank,
            child,
            lambda line: self.events.put(Reported(r.REPORTS.decode(line))),
        )
        self.tell(assignment.rank, assignment)

    def tell(self, rank: int, order: r.Order) -> None:
        """Send a worker an order; one that is gone does not hear it."""
        stdin = self._children[rank].stdin
        if stdin is not None:
            with contextlib.suppress(OSError):
                stdin.write(r.line(order))
                stdin.flush()

    def stop_daemon(self) -> None:
        """Ask the daemon to finish what it does and end."""
        self._children[DAEMON].terminate()

    def last_words(self, rank: int) -> str:
        """The last line that a worker wrote to stderr."""
        written = self._noise(rank).read_text(errors="replace").strip()
        return written.rpartition("\n")[2]

    def _noise(self, rank: int) -> Path:
        return self._folder / f"worker{rank}.log"

    def _follow(
        self, who: int, child: subprocess.Popen[bytes], tell: Callable[[bytes], None]
    ) -> None:
        self._children[who] = child

        def read() -> None:
            for line in child.stdout or ():
                tell(line)
            self.events.put(Ended(who, child.wait()))

        thread = threading.Thread(target=read, name=f"reader {who}", daemon=True)
        self._threads.append(thread)
        thread.start()
