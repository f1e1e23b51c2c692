"""What the service manager is told: sd_notify(3), and nothing where nobody listens.

Owns the datagrams. A manager that does not read must not stop the daemon: sending never waits, and
a datagram that cannot be sent is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping

import anyio
from anyio.abc import TaskGroup

MORE_S = 30.0
"""What is asked for at a time; asked again three times in it."""


class Manager:
    """The service manager as the environment describes it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period_us = environment.get("WATCHDOG_USEC", "0") if mine else "0"
        self.watchdog_s = int(period_us) / 1e6 if period_us.isdecimal() else 0.0
        """Silence after which the manager kills; 0.0 where it does not watch."""

    def tell(self, **words: str | int) -> None:
        """Send one datagram of assignments: `tell(READY=1, STATUS="serving")`."""
        if not self._address:
            return
        # A leading @ stands for the NUL of an abstract address.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # A line end inside a value would begin another assignment.
        lines = (f"{word}={value}".replace("\n", " ") for word, value in words.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.settimeout(0.0)
            door.sendto("\n".join(lines).encode(), address)

    def reloading(self) -> None:
        """Say that a reload begins; end it with `tell(READY=1)`.

        One datagram: a manager that gets the time stamp in a second one takes that for a fault.
        """
        self.tell(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000)

    @contextlib.contextmanager
    def asked_to_wait(self, tasks: TaskGroup, more_s: float = MORE_S) -> Iterator[None]:
        """Ask for time beyond the unit's timeout while the block runs, which has its own deadline.

        For starts and reloads: a policy that compiles takes minutes, once after an installation.
        """
        scope = anyio.CancelScope()
        tasks.start_soon(self._ask_for_time, scope, more_s)
        try:
            yield
        finally:
            scope.cancel()

    async def _ask_for_time(self, scope: anyio.CancelScope, more_s: float) -> None:
        with scope:
            while self._address:
                self.tell(EXTEND_TIMEOUT_USEC=int(more_s * 1e6))
                await anyio.sleep(more_s / 3)
