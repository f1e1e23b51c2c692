"""The way to a leader: one DEALER on tcp, for all groups that this node relays to that daemon.

Owns the connection: when it is dialled, why it does not stand, and that it is dialled again. The
leader has to prove the key that it is known by. Must not know bundles: frames in, frames out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import anyio
import anyio.lowlevel
import zmq
import zmq.asyncio

from eplbd.core.cluster import Address
from eplbd.runtime.curve import BATCH, Monitor, curve_socket, monitored
from eplbd.runtime.keys import KeyPair
from eplbd.runtime.link import Sent

REDIAL_S = 3.0
"""libzmq tries again by itself after most failures, but never after it was refused."""

RECONNECT_MS, RECONNECT_MOST_MS = 100, 1_000

DIALLING = "nobody answers there"
DENIED = "the leader does not trust this node: put its node.key into the leader's cluster.trust_dir"
CLOSED = "the connection ends in the handshake: no eplbd listens there, or one with another key"

_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
)

Take: TypeAlias = Callable[[list[list[bytes]]], None]


class Uplink:
    """A connection to one leader, which `run` holds.

    changed: is told why it does not stand, whenever the reason changes; empty while it does.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        leader: Address,
        pair: KeyPair,
        max_message_bytes: int,
        changed: Callable[[str], None],
    ) -> None:
        self._context, self._pair, self._max_bytes = context, pair, max_message_bytes
        self.leader = leader
        self._dealer: zmq.asyncio.Socket | None = None
        self._changed = changed
        self.reason = DIALLING
        self._told: str | None = None
        self._lost = 0.0

    @property
    def linked(self) -> bool:
        """Whether the leader has proved its key and let this node in."""
        return not self.reason

    async def run(self, take: Take) -> None:
        """Dial, and hand on what comes, until cancelled."""
        while True:
            with (
                curve_socket(self._context, zmq.DEALER, self._pair, self._max_bytes) as dealer,
                monitored(dealer, _EVENTS) as monitor,
            ):
                dealer.setsockopt(zmq.IMMEDIATE, 1)
                dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
                dealer.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MOST_MS)
                dealer.setsockopt(zmq.CURVE_SERVERKEY, self.leader.key.encode())
                # A name that cannot be one: as if nobody answered there.
                with contextlib.suppress(zmq.ZMQError):
                    dealer.connect(self.leader.endpoint)
                self._lost = anyio.current_time()
                self._dealer = dealer
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._receive, dealer, take)
                        tasks.start_soon(self._watch, monitor)
                        await self._given_up()
                        tasks.cancel_scope.cancel()
                finally:
                    self._dealer = None

    def send(self, frames: Sequence[bytes | memoryview]) -> Sent:
        """Queue frames, or say why not; never waits, and keeps nothing for a later connection."""
        if self._dealer is None:
            return Sent.UNREACHABLE
        sending = self._dealer.send_multipart([*frames], flags=zmq.NOBLOCK)
        match cast("asyncio.Future[None]", sending).exception():
            case None:
                return Sent.QUEUED
            case zmq.Again():
                return Sent.DROPPED if self.linked else Sent.UNREACHABLE
            case error:
                raise error

    async def _given_up(self) -> None:
        """Return once it has not stood for a while."""
        while True:
            await anyio.sleep(REDIAL_S / 4)
            if not self.linked and anyio.current_time() - self._lost > REDIAL_S:
                self._tell()
                return

    async def _receive(self, dealer: zmq.asyncio.Socket, take: Take) -> None:
        while True:
            letters = [await dealer.recv_multipart()]
            with contextlib.suppress(zmq.Again):
                while len(letters) < BATCH:
                    letters.append(await dealer.recv_multipart(zmq.NOBLOCK))
            take(letters)
            await anyio.lowlevel.checkpoint()

    async def _watch(self, monitor: Monitor) -> None:
        while True:
            event, _ = await monitor.event()
            match event:
                case zmq.Event.HANDSHAKE_SUCCEEDED:
                    self._stands("")
                case zmq.Event.HANDSHAKE_FAILED_AUTH:
                    self._stands(DENIED)
                case zmq.Event.DISCONNECTED:
                    self._stands(self.reason or DIALLING)
                case _:
                    self._stands(CLOSED)

    def _stands(self, reason: str) -> None:
        if reason == self.reason:
            return
        if self.linked:
            self._lost = anyio.current_time()
        self.reason = reason
        self._tell()

    def _tell(self) -> None:
        if self.reason != self._told:
            self._told = self.reason
            self._changed(self.reason)
