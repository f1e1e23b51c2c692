"""The real daemon, `eplbd serve` in a process of its own, life after life, and all it logged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.waiting import until
from tests.runtime.process import write_config

START_S = 30.0
"""Imports, the policy's warm-up; one to two seconds on an idle machine."""
END_S = 10.0
LINE_S = 20.0

MAIN = """
import ctypes, signal
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
from eplbd.cli import main
main(prog_name="eplbd")
"""
"""`python -m eplbd`, but killed with the test that started it: prctl's PR_SET_PDEATHSIG."""

REPOSITORY = Path(__file__).resolve().parents[2]

Line = dict[str, Any]


class Served:
    """One daemon at a time, in `folder`, with one configuration file that may be rewritten.

    prefix: a command that runs another, such as one that enters a namespace.
    """

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        self.folder, self._prefix = folder, prefix
        self.config = folder / "eplbd.toml"
        self.socket = f"ipc://{folder}/w.sock"
        self.state = folder / "state"
        self.lines: list[Line] = []
        """Of all lives; `life` is the number of the one that wrote it."""
        self.noise: list[str] = []
        self.lives = 0
        self.children: list[int] = []
        """Process ids of policies' processes."""
        self.popen: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def configure(self, **keys: object) -> None:
        """Write the configuration; it is read at the next start or reload."""
        write_config(self.folder, **keys)

    # --- life and death -------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def launch(self, config: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a process of the daemon; whoever calls it sees to its end."""
        environment = {name: value for name, value in os.environ.items() if "EPLBD" not in name}
        serve = ["serve", "--config", str(config or self.config)]
        command = [*self._prefix, sys.executable, "-c", MAIN, *serve]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # The path is for the policies that come from the tests.
            env={**environment, "PYTHONPATH": str(REPOSITORY)},
            start_new_session=True,
        )

    def start(self, *, wait: bool = True) -> None:
        """Begin a life; return once it serves."""
        assert not self.alive
        self.lives += 1
        self.popen = self.launch()
        which = self.popen, self.lives
        self._reader = threading.Thread(target=self._read, args=which, daemon=True)
        self._reader.start()
        if wait:
            self.line("serving", START_S)

    def kill(self) -> None:
        """SIGKILL, and nothing of the process is left when this returns."""
        popen = self._process
        popen.kill()
        popen.wait(END_S)

    def signal(self, number: signal.Signals) -> None:
        """Send it."""
        self._process.send_signal(number)

    def ended(self) -> int:
        """Exit status, once it has ended."""
        return self._process.wait(END_S)

    def close(self) -> None:
        """End whatever lives."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(END_S)
        if self._reader is not None:
            self._reader.join(END_S)

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self.popen is not None
        return self.popen

    def _read(self, popen: subprocess.Popen[bytes], life: int) -> None:
        assert popen.stdout is not None
        for text in popen.stdout:
            if not text.startswith(b"{"):
                self.noise.append(text.decode(errors="replace"))
                continue
            line = json.loads(text)
            if line["event"] == "policy ready":
                self.children.append(line["pid"])
            self.lines.append({**line, "life": life})
        popen.stdout.close()

    # --- log ------------------------------------------------------------------------------------

    def mark(self) -> int:
        """Where the log ends now."""
        return len(self.lines)

    def since(self, mark: int, event: str, **fields: object) -> Iterator[Line]:
        """Lines behind `mark` that are of this event and say that."""
        for line in self.lines[mark:]:
            if line["event"] == event and all(
                line.get(name) == value for name, value in fields.items()
            ):
                yield line

    def line(
        self, event: str, deadline_s: float = LINE_S, *, mark: int = -1, **fields: object
    ) -> Line:
        """The first such line behind `mark` (default: of this life), waited for."""

        def found() -> Line | None:
            if mark >= 0:
                return next(self.since(mark, event, **fields), None)
            return next(self.since(0, event, life=self.lives, **fields), None)

        until(lambda: found() is not None, deadline_s, lambda: self.missing(event, fields))
        line = found()
        assert line is not None
        return line

    def missing(self, event: str, fields: dict[str, object]) -> str:
        """The sentence about a line that did not come."""
        return f"{event!r} {fields} in the daemon's log\n{self.tail()}"

    def tail(self) -> str:
        """The end of the log."""
        shown = "\n".join(json.dumps(line) for line in self.lines[-30:])
        return f"{shown}\n{''.join(self.noise[-40:])}"
