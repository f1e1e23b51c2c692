"""A real daemon in a real process, its log lines and what it tells the service manager."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.runtime.conftest import PATIENCE_S, wait_until

GUESTS = Path(__file__).with_name("guests")


def write_config(folder: Path, **keys: object) -> Path:
    """`eplbd.toml` of a daemon that lives in `folder`; keys as `section__name`."""
    given: dict[str, object] = {
        "daemon__socket": f"ipc://{folder}/w.sock",
        "daemon__state_dir": str(folder / "state"),
        "metrics__enabled": False,
        "policy__name": "hold",
        **keys,
    }
    sections: dict[str, list[str]] = {}
    for key, value in given.items():
        section, name = key.split("__")
        sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
    lines = [line for name, rows in sections.items() for line in (f"[{name}]", *rows)]
    file = folder / "eplbd.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


class Process:
    """One daemon. Lines and words are collected as they come."""

    def __init__(self, popen: subprocess.Popen[bytes], manager: socket.socket) -> None:
        self.popen = popen
        self.lines: list[dict[str, Any]] = []
        self.words: list[str] = []
        self.noise: list[str] = []
        self._manager = manager
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        for line in self.popen.stdout or ():
            if line.startswith(b"{"):
                self.lines.append(json.loads(line))
            else:
                self.noise.append(line.decode(errors="replace"))

    def _listen(self) -> None:
        while said := self._manager.recv(65_536):
            self.words.append(said.decode())

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]

    def line(self, event: str) -> dict[str, Any]:
        """The newest line of this event, waited for."""
        wait_until(lambda: event in self.events(), lambda: f"{event!r} in the log; {self.story()}")
        return next(line for line in reversed(self.lines) if line["event"] == event)

    def told(self, word: str, times: int = 1) -> None:
        """Wait until the manager was told something that begins like this."""
        wait_until(
            lambda: sum(said.startswith(word) for said in self.words) >= times,
            lambda: f"{word!r} was told; {self.story()}",
        )

    def story(self) -> str:
        """For a test that fails."""
        return f"manager {self.words}, log {self.lines}, noise {''.join(self.noise)}"

    def wait(self) -> int:
        """Exit status, once it has ended."""
        return self.popen.wait(PATIENCE_S)

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self._manager.getsockname())
        for thread in self._threads:
            thread.join()


@contextmanager
def daemon(
    config: Path, environment: Mapping[str, str] | None = None, stdout: int = subprocess.PIPE
) -> Iterator[Process]:
    """Start one; it is killed at the end, if a test has not ended it."""
    notify = str(config.with_name(f"notify{len(list(config.parent.glob('notify*')))}"))
    command = [sys.executable, "-m", "eplbd", "serve", "--config", str(config)]
    inherited = {name: value for name, value in os.environ.items() if "EPLBD" not in name}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(notify)
        with subprocess.Popen(
            command,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env={**inherited, "NOTIFY_SOCKET": notify, **(environment or {})},
        ) as popen:
            process = Process(popen, manager)
            try:
                yield process
            finally:
                process.close()
