"""The daemons' network: Ethernet frames between TAP devices, late, lost or cut off.

In Python, since not every kernel has what `tc` needs to delay and to lose (sch_netem); bundles are
few. Owns the frames under way. Must not know namespaces, nor what a frame holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_BYTES = 65_536
IDLE_S = 0.5


def open_tap(name: str) -> int:
    """A new TAP device in the network of this thread; its descriptor."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return end


class Wire:
    """A hub: what one host says, all others hear, `delay_s` later, but for the share `loss`.

    ends: descriptors of TAP devices, by host; closed at the end.
    """

    def __init__(self, ends: Mapping[str, int], *, delay_s: float, loss: float) -> None:
        self._ends, self._delay_s, self._loss = dict(ends), delay_s, loss
        self._hosts = {end: host for host, end in ends.items()}
        self._chance = random.Random(1)
        self._cut: frozenset[str] = frozenset()
        self._stop, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="wire", daemon=True)
        self.carried = self.lost = 0
        """Frames, over all hosts."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._wake)
        self._thread.join()
        for end in (self._stop, *self._ends.values()):
            os.close(end)

    def cut(self, *hosts: str) -> None:
        """From now on nothing goes to these hosts or comes from them; without any: all is well."""
        self._cut = frozenset(hosts)

    def _carry(self) -> None:
        order = itertools.count()
        late: list[tuple[float, int, str, bytes]] = []
        ends = [self._stop, *self._hosts]
        while True:
            now = time.monotonic()
            while late and late[0][0] <= now:
                _, _, host, frame = heapq.heappop(late)
                self._hand(host, frame)
            patience = min(IDLE_S, late[0][0] - now) if late else IDLE_S
            ready, _, _ = select.select(ends, [], [], patience)
            if self._stop in ready:
                return
            for end in ready:
                frame = os.read(end, FRAME_BYTES)
                due = time.monotonic() + self._delay_s * self._chance.uniform(0.8, 1.2)
                sender = self._hosts[end]
                for host in self._ends:
                    if host == sender:
                        continue
                    if self._chance.random() < self._loss or self._cut & {host, sender}:
                        self.lost += 1
                    else:
                        heapq.heappush(late, (due, next(order), host, frame))

    def _hand(self, host: str, frame: bytes) -> None:
        if host in self._cut:
            self.lost += 1
            return
        with contextlib.suppress(OSError):  # the device is down, or its queue is full
            os.write(self._ends[host], frame)
            self.carried += 1
