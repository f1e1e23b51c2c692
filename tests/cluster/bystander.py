"""A process that only sleeps and notes how late it was woken: what the machine does to anybody.

`python -m tests.cluster.bystander`: each line on its input is answered with the longest delay since
the line before, in seconds. Eleven processes on two cores are at times not run for as long as a
forward takes; that is nobody's fault, and this says how long it can be.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAP_S = 0.01
REPOSITORY = Path(__file__).resolve().parents[2]


class Bystanders:
    """Some of them, asked together."""

    def __init__(self, popens: list[subprocess.Popen[bytes]]) -> None:
        self._popens = popens

    def delay_s(self) -> float:
        """The longest that any of them was kept waiting since this was asked last."""
        found = []
        for popen in self._popens:
            assert popen.stdin is not None
            assert popen.stdout is not None
            popen.stdin.write(b"\n")
            popen.stdin.flush()
            found.append(float(popen.stdout.readline()))
        return max(found)


@contextmanager
def bystanders(count: int) -> Iterator[Bystanders]:
    """So many processes, until the block ends."""
    command = [sys.executable, "-m", "tests.cluster.bystander"]
    popens = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
        for _ in range(count)
    ]
    try:
        yield Bystanders(popens)
    finally:
        for popen in popens:
            popen.communicate()


class _Nap:
    """The longest delay so far."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    def watch(self) -> None:
        """Sleep, again and again."""
        while True:
            began = time.perf_counter()
            time.sleep(NAP_S)
            self.worst_s = max(self.worst_s, time.perf_counter() - began - NAP_S)


def main() -> None:
    """Answer until the input ends."""
    nap = _Nap()
    threading.Thread(target=nap.watch, daemon=True).start()
    for _ in sys.stdin:
        sys.stdout.write(f"{nap.worst_s}\n")
        sys.stdout.flush()
        nap.worst_s = 0.0


if __name__ == "__main__":
    main()
