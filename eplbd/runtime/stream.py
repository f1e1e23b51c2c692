"""The event stream: a PUB that tells what happens, a ROUTER that tells it again.

Owns the numbers, what is kept to be told again, and when a snapshot is made: for subscribers every
`interval_s`, for everybody at the end of an answer, and never while nobody listens. Must not know
what an event means. Nothing here waits for a reader: what a slow one does not take it finds out by
the numbers, and asks for.

Numbers go on from the microseconds since 1970 at which the daemon started. So those of a restarted
daemon are greater than all that were seen before, and a reader that only knows how to ask for what
it missed is right across restarts, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import cast

import anyio
import anyio.lowlevel
import zmq
import zmq.asyncio

from eplbd.config import Config, stream_endpoints
from eplbd.core.events import Effect
from eplbd.core.views import NodeOverview
from eplbd.errors import EplbdError, LocalProtocolError
from eplbd.runtime.endpoint import bind, claimed
from eplbd.wire import stream as wire

KEPT_BYTES = 8 << 20
"""Of events to be told again; a line of a cycle on 58 layers takes one thousandth of a megabyte."""

FRESH_S = 0.2
"""A snapshot this young answers everybody: whoever asks in a loop costs no look more than this."""

SNAPSHOT = b"snapshot"
QUESTION_BYTES = 1_024
BATCH = 64
"""Answers sent per turn of the loop, which has an engine to lead."""


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """Counts since the stream was opened, and what there is now."""

    events: int
    kept: int
    snapshots: int
    answers: int
    refused: int
    """Questions that were none, answers that nobody took, and events that nobody could read."""
    watched: bool
    """Whether anybody subscribes to snapshots."""


class Stream:
    """Both sockets and what was told on them. Made by `open_stream`; belongs to the loop."""

    def __init__(
        self,
        publisher: zmq.asyncio.Socket,
        answerer: zmq.asyncio.Socket,
        look: Callable[[], NodeOverview],
        *,
        interval_s: float,
        keep: int,
    ) -> None:
        self._publisher, self._answerer, self._look = publisher, answerer, look
        self._interval_s, self._keep = interval_s, keep
        self._first = self._seq = time.time_ns() // 1_000
        self._started = time.monotonic()
        self._version, self._host = version("eplbd"), platform.node()
        self._told: deque[tuple[int, bytes]] = deque()
        self._told_bytes = 0
        self._snapshot, self._snapshot_key = b"", (0.0, -1)
        self._topics: set[bytes] = set()
        """Subscriptions that snapshots match: at most one per length of their topic."""
        self._watched = anyio.Event()
        self._snapshots = self._answers = self._refused = 0

    def take(self, effect: Effect) -> None:
        """Tell an effect, if it is one that is told; never waits."""
        event = wire.told(effect, time.time())
        if event is None:
            return
        try:
            body = wire.payload(event)
        except LocalProtocolError:
            self._refused += 1  # the log has it; whoever watches does not stop who leads
            return
        self._seq += 1
        self._told.append((self._seq, body))
        self._told_bytes += len(body)
        while len(self._told) > self._keep or self._told_bytes > KEPT_BYTES:
            self._told_bytes -= len(self._told.popleft()[1])
        self._publish(wire.topic(event), body)

    async def run(self) -> None:
        """Show, hear and answer until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._hear)
            tasks.start_soon(self._answer)
            tasks.start_soon(self._show)

    def statistics(self) -> StreamStatistics:
        """Counts so far."""
        return StreamStatistics(
            events=self._seq - self._first,
            kept=len(self._told),
            snapshots=self._snapshots,
            answers=self._answers,
            refused=self._refused,
            watched=bool(self._topics),
        )

    def snapshot(self) -> wire.Snapshot:
        """How everything stands now."""
        return wire.snapshot(
            self._look(),
            at_s=time.time(),
            up_s=time.monotonic() - self._started,
            version=self._version,
            host=self._host,
        )

    # --- who listens ----------------------------------------------------------------------------

    async def _hear(self) -> None:
        """Keep account of subscriptions: an XPUB passes on the first of a kind and the last's end.

        Whatever else a peer writes to its subscriber's socket is not for anybody.
        """
        while True:
            said, *rest = await self._publisher.recv_multipart()
            if rest or not SNAPSHOT.startswith(said[1:]):
                continue
            if said[:1] == b"\1":
                self._topics.add(said[1:])
                self._watched.set()
            elif said[:1] == b"\0":
                self._topics.discard(said[1:])
                if not self._topics:
                    self._watched = anyio.Event()

    async def _show(self) -> None:
        while True:
            await self._watched.wait()
            self._publish(SNAPSHOT, self._fresh_snapshot())
            await anyio.sleep(self._interval_s)

    def _publish(self, topic: bytes, body: bytes) -> None:
        _send(self._publisher, [topic, wire.number(self._seq), body])

    def _fresh_snapshot(self) -> bytes:
        """One of this moment's number, and not long ago."""
        now, (made_at, seq) = time.monotonic(), self._snapshot_key
        if now - made_at > min(FRESH_S, self._interval_s / 2) or seq != self._seq:
            self._snapshot = wire.payload(self.snapshot())
            self._snapshot_key = now, self._seq
            self._snapshots += 1
        return self._snapshot

    # --- who asks -------------------------------------------------------------------------------

    async def _answer(self) -> None:
        while True:
            peer, *frames = await self._answerer.recv_multipart()
            try:
                start = wire.asked(frames)
            except EplbdError:
                self._refused += 1
                continue
            answers = [(wire.number(seq), body) for seq, body in self._told if seq >= start]
            answers += [(wire.number(self._seq), self._fresh_snapshot()), (wire.END, b"")]
            for index, (number, body) in enumerate(answers):
                if not _send(self._answerer, [peer, b"", number, body]):
                    self._refused += 1
                    break
                if index % BATCH == BATCH - 1:
                    await anyio.lowlevel.checkpoint()
            else:
                self._answers += 1
            await anyio.lowlevel.checkpoint()


def _send(sender: zmq.asyncio.Socket, frames: Sequence[bytes]) -> bool:
    """Queue a message; whether it was taken. Never waits."""
    sending = sender.send_multipart(frames, flags=zmq.NOBLOCK)
    # A future, declared as any awaitable; with NOBLOCK it is complete when it is returned.
    match cast("asyncio.Future[None]", sending).exception():
        case None:
            return True
        case zmq.Again() | zmq.ZMQError(errno=zmq.EHOSTUNREACH):
            return False
        case error:
            raise error


@contextlib.contextmanager
def open_stream(config: Config, look: Callable[[], NodeOverview]) -> Iterator[Stream]:
    """Bind both sockets of `[stream]` and hold them while the block runs.

    look: makes the snapshots' content; called on the loop.

    Raises:
        ConfigError: Another daemon serves the endpoint, something else is in its place, or it
            cannot be bound.
    """
    settings, key = config.stream, "stream.socket"
    endpoints = stream_endpoints(config) if settings.enabled else ()
    with contextlib.ExitStack() as stack:
        for endpoint in endpoints:
            stack.enter_context(claimed(endpoint, key))
        context = stack.enter_context(zmq.asyncio.Context(io_threads=1))
        publisher = stack.enter_context(context.socket(zmq.XPUB))
        answerer = stack.enter_context(context.socket(zmq.ROUTER))
        answerer.setsockopt(zmq.ROUTER_MANDATORY, 1)
        for socket in (publisher, answerer):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, settings.keep_events + BATCH)
            socket.setsockopt(zmq.MAXMSGSIZE, QUESTION_BYTES)
        for socket, endpoint in zip((publisher, answerer), endpoints, strict=False):
            bind(socket, endpoint, mode=int(settings.socket_mode, 8), key=key)
        yield Stream(
            publisher,
            answerer,
            look,
            interval_s=settings.interval_s,
            keep=settings.keep_events,
        )
