"""The workers' door: one ROUTER on a unix socket.

Owns the marks and caps of the endpoint, and what becomes of a message that cannot be sent. Must not
know messages: frames in, frames out. Nothing here waits for a peer.

The figures, and why:

- High water marks of 16: a report of heat is 34 kB, so a rank holds half a megabyte. On the way in
  the mark loses nothing: a full pipe pushes back into the worker, which drops heat and keeps
  control. On the way out there is control alone; what a stuck rank does not take is dropped,
  counted, and sent again by the core.
- No ZMTP heartbeats: libzmq 4.3 aborts the process whose heartbeat falls due after a peer has gone
  whose pipe is full (libzmq issues 3937 and 4364). There is no dead host behind a unix socket; a
  worker that was stopped, or whose Python is stuck, is found by the protocol's own signs of life.
- MANDATORY, since the default drops what goes to an unknown peer without a word; HANDOVER, since
  without it a restarted worker of the same identity is not heard. An identity is an address, never
  an authority.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import zmq
import zmq.asyncio

from eplbd.runtime.endpoint import bind, claimed

KEY = "daemon.socket"
HIGH_WATER = 16
BATCH = 64
BATCH_BYTES = 4 << 20
"""Messages taken per turn, and bytes after which no more are: what has arrived shares one tick, and
no flood keeps the loop."""
LARGE_BYTES = 1 << 16
"""Frames over this are left where libzmq has put them. Whoever sends the largest that there may be
writes them no faster than they are read: 60 MB take 20 ms to copy, and nothing to refuse."""

Packet: TypeAlias = tuple[bytes, list[bytes | memoryview]]
"""Peer, and the frames it sent."""


class Sent(enum.Enum):
    """What became of a message."""

    QUEUED = "queued"
    DROPPED = "dropped"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Counts since the link was opened."""

    received: int
    received_bytes: int
    sent: int
    dropped: int
    """The peer's queue was full."""
    unreachable: int


class Link:
    """A bound endpoint. Made by `open_link`; belongs to the loop that runs."""

    def __init__(self, router: zmq.asyncio.Socket) -> None:
        self._router = router
        self._received = self._received_bytes = 0
        self._sent = dict.fromkeys(Sent, 0)

    async def receive(self) -> list[Packet]:
        """Wait for a message, return it and what else has arrived; cancelling loses nothing.

        Small frames are copied out of libzmq (3 us for 34 kB); large ones are views of a frame
        that is nobody else's.
        """
        receive = self._router.recv_multipart
        packets = [self._packet(await receive(copy=False))]
        full = self._received_bytes + BATCH_BYTES
        with contextlib.suppress(zmq.Again):
            while len(packets) < BATCH and self._received_bytes < full:
                packets.append(self._packet(await receive(zmq.NOBLOCK, copy=False)))
        return packets

    def send(self, peer: bytes, frames: Sequence[bytes | memoryview]) -> Sent:
        """Queue a message for a peer, or say why not; never waits."""
        sending = self._router.send_multipart([peer, *frames], flags=zmq.NOBLOCK)
        # A future, declared as any awaitable; with NOBLOCK it is complete when it is returned.
        match cast("asyncio.Future[None]", sending).exception():
            case None:
                outcome = Sent.QUEUED
            case zmq.Again():
                outcome = Sent.DROPPED
            case zmq.ZMQError(errno=zmq.EHOSTUNREACH):
                outcome = Sent.UNREACHABLE
            case error:
                raise error
        self._sent[outcome] += 1
        return outcome

    def statistics(self) -> LinkStatistics:
        """Counts so far."""
        return LinkStatistics(
            received=self._received,
            received_bytes=self._received_bytes,
            sent=self._sent[Sent.QUEUED],
            dropped=self._sent[Sent.DROPPED],
            unreachable=self._sent[Sent.UNREACHABLE],
        )

    def _packet(self, parts: list[zmq.Frame]) -> Packet:
        self._received += 1
        self._received_bytes += sum(map(len, parts))
        frames = [part.bytes if len(part) <= LARGE_BYTES else part.buffer for part in parts[1:]]
        return parts[0].bytes, frames


@contextlib.contextmanager
def open_link(
    endpoint: str, *, mode: int, max_message_bytes: int, key: str = KEY
) -> Iterator[Link]:
    """Bind `endpoint` (`ipc://` and an absolute path) and hold it while the block runs.

    Args:
        endpoint: Where peers connect.
        mode: Permissions of the socket; connecting takes the right to write.
        max_message_bytes: A frame that is larger disconnects its sender.
        key: The setting that names the endpoint, for refusals.

    Raises:
        ConfigError: Another daemon serves it, something else is in its place, or it cannot be
            bound.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(endpoint, key))
        context = stack.enter_context(zmq.asyncio.Context(io_threads=1))
        router = stack.enter_context(context.socket(zmq.ROUTER))
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        router.setsockopt(zmq.RCVHWM, HIGH_WATER)
        router.setsockopt(zmq.SNDHWM, HIGH_WATER)
        router.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        bind(router, endpoint, mode=mode, key=key)
        yield Link(router)
