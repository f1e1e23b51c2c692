"""The door to other nodes: one ROUTER on tcp, which lets in whom this node trusts.

Owns who is let in, and the way back to each relay. The key that a connection proved to have, which
libzmq puts beside every message, says who speaks; what a peer calls itself says nothing. Must not
know bundles: frames in, frames out.

libzmq asks for a key once per connection. So the door is shut and opened anew when a key is
withdrawn: whoever is still trusted is back within a fraction of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import anyio
import anyio.lowlevel
import zmq
import zmq.asyncio
from zmq.auth.base import Authenticator

from eplbd.errors import ConfigError
from eplbd.runtime.curve import BATCH, MISMATCH, Monitor, curve_socket, monitored
from eplbd.runtime.keys import KeyPair, Trust
from eplbd.runtime.link import Sent

KEY = "cluster.listen"
DOMAIN = b"eplbd"
AGAIN_S = 0.02
ATTEMPTS = 50
"""How long after each other, and how many before it is said, that we bind where this very process
listened a moment ago. Somebody else may have the address by now."""

Refused: TypeAlias = Callable[[str, bytes], None]
"""Is told why somebody was not let in, and the key, if one was proved."""

UNKNOWN, PLAIN, OTHERS = "unknown key", "no encryption", "wrong server key"
SHUT = "the door cannot be opened again"


@dataclass(frozen=True, slots=True)
class Letter:
    """Frames from a relay.

    key: which it proved to have, z85. route: of its connection; the way back.
    """

    key: bytes
    route: bytes
    frames: list[bytes]


Take: TypeAlias = Callable[[list[Letter]], None]

Bound: TypeAlias = tuple[zmq.asyncio.Socket, Monitor]
"""Watched from before it is bound: whoever speaks no CURVE knocks once and not again."""


class Door:
    """A bound endpoint. Made by `open_door`; belongs to the loop that runs."""

    def __init__(
        self,
        bound: Callable[[], contextlib.AbstractContextManager[Bound]],
        refused: Refused,
        answer: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        self._bound, self._refused, self._answer = bound, refused, answer
        self._stack = contextlib.ExitStack()
        self._router: zmq.asyncio.Socket | None
        self._router, self._monitor = self._stack.enter_context(bound())
        self._routes: dict[bytes, bytes] = {}
        self._renew = anyio.Event()
        self.trust = Trust({})

    async def run(self, take: Take) -> None:
        """Let in whom this node trusts and hand on what they say, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._answer)
            await self._hand_on(take)

    async def _hand_on(self, take: Take) -> None:
        while True:
            router = self._router or await self._opened_again()
            self._renew = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._receive, router, take)
                tasks.start_soon(self._watch, self._monitor)
                await self._renew.wait()
                tasks.cancel_scope.cancel()
            self.close()

    def admit(self, trust: Trust) -> None:
        """Let these in from now on, and nobody else; who was withdrawn is cut off at once."""
        withdrawn = self.trust.names.keys() - trust.names.keys()
        self.trust = trust
        if withdrawn:
            # Nothing that they have sent is taken, and nothing is sent to them, from here on.
            self._routes.clear()
            self._renew.set()

    def keep_route(self, letter: Letter) -> None:
        """What is for this relay goes back the way that this letter came."""
        self._routes[letter.key] = letter.route

    @property
    def reached(self) -> int:
        """Relays to which there is a way, as far as is known."""
        return len(self._routes)

    def send(self, key: bytes, frames: Sequence[bytes | memoryview]) -> Sent:
        """Queue frames for a relay, or say why not; never waits."""
        if key in self.trust and (self._renew.is_set() or self._router is None):
            return Sent.DROPPED  # it will be back in a moment
        route = self._routes.get(key)
        if route is None or self._router is None:
            return Sent.UNREACHABLE
        sending = self._router.send_multipart([route, *frames], flags=zmq.NOBLOCK)
        match cast("asyncio.Future[None]", sending).exception():
            case None:
                return Sent.QUEUED
            case zmq.Again():
                return Sent.DROPPED
            case zmq.ZMQError(errno=zmq.EHOSTUNREACH):
                del self._routes[key]
                return Sent.UNREACHABLE
            case error:
                raise error

    def close(self) -> None:
        """End every connection."""
        self._router = None
        self._stack.close()

    async def _receive(self, router: zmq.asyncio.Socket, take: Take) -> None:
        while True:
            first = await router.recv_multipart(copy=False)
            letters = [*self._letters(first)]
            with contextlib.suppress(zmq.Again):
                for _ in range(BATCH):
                    letters += self._letters(await router.recv_multipart(zmq.NOBLOCK, copy=False))
            if letters:
                take(letters)
            await anyio.lowlevel.checkpoint()

    def _letters(self, frames: list[zmq.Frame]) -> Iterator[Letter]:
        """The letter in these frames; none where its sender is not trusted (any more)."""
        route, *rest = frames
        key = _proved(rest[0])
        if key in self.trust:
            yield Letter(key, route.bytes, [frame.bytes for frame in rest])
        else:
            self._refused(UNKNOWN, key)

    async def _watch(self, monitor: Monitor) -> None:
        """Tell of handshakes that failed.

        A libzmq without CURVE hangs up when it reads our greeting. Where its own had not been read
        here by then, that is a connection which broke, and nobody is told.
        """
        while True:
            _, why = await monitor.event()
            self._refused(PLAIN if why == MISMATCH else OTHERS, b"")

    async def _opened_again(self) -> zmq.asyncio.Socket:
        """Bind where we listened: libzmq closes behind our back, a moment later."""
        attempts = 0
        while True:
            with contextlib.suppress(ConfigError):
                self._router, self._monitor = self._stack.enter_context(self._bound())
                return self._router
            attempts += 1
            if attempts == ATTEMPTS:
                self._refused(SHUT, b"")
            await anyio.sleep(AGAIN_S)


class _Authority(Authenticator):
    """Answers libzmq's question whether a key may come in (ZAP, RFC 27).

    On a socket of the loop. pyzmq's own for asyncio waits for the descriptor of one that is not,
    and takes it out of the loop a turn late: sometimes out of the wait that has begun meanwhile,
    and, once it was closed, from whoever has its number by then. Neither is ever woken again.
    """

    def __init__(
        self, asked: zmq.asyncio.Socket, trusted: Callable[[bytes], bool], refused: Refused
    ) -> None:
        super().__init__(asked.context)
        self._asked, self._trusted, self._refused = asked, trusted, refused
        self.configure_curve_callback(DOMAIN.decode(), self)

    def start(self) -> None:
        """Be there for libzmq, which asks nobody who comes after the knocker."""
        self.zap_socket = self._asked
        self._asked.bind("inproc://zeromq.zap.01")

    async def answer(self) -> None:
        """Answer until cancelled."""
        while True:
            await self.handle_zap_message(await self._asked.recv_multipart())

    def callback(self, _domain: str, key: bytes) -> bool:
        """As pyzmq wants it: the key in z85."""
        trusted = self._trusted(key)
        if not trusted:
            self._refused(UNKNOWN, key)
        return trusted


@contextlib.contextmanager
def open_door(
    context: zmq.asyncio.Context,
    endpoint: str,
    pair: KeyPair,
    max_message_bytes: int,
    refused: Refused,
) -> Iterator[Door]:
    """Listen on `endpoint`; nobody is let in before `Door.admit`.

    The context must have no other door: libzmq asks one authority per context.

    Raises:
        ConfigError: It cannot be bound.
    """

    @contextlib.contextmanager
    def bound() -> Iterator[Bound]:
        with (
            curve_socket(context, zmq.ROUTER, pair, max_message_bytes) as router,
            monitored(router, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL) as monitor,
        ):
            router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
            # Without an authority libzmq would let everybody in.
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            try:
                router.bind(endpoint)
            except zmq.ZMQError as error:
                raise ConfigError(
                    f"{KEY}: cannot bind {endpoint}: {error}; is it an address of this machine, "
                    "and does nothing else listen there?"
                ) from error
            yield router, monitor

    _demand_interfaces()
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(context.socket(zmq.REP))
        asked.setsockopt(zmq.LINGER, 0)
        authority = _Authority(asked, lambda key: key in door.trust, refused)
        authority.start()
        door = Door(bound, refused, authority.answer)
        stack.callback(door.close)
        yield door


def _demand_interfaces() -> None:
    """Look through the interfaces as libzmq will: it ends the process where it may not."""
    try:
        socket.if_nameindex()
    except OSError as error:
        raise ConfigError(
            f"{KEY}: the daemon may not look through this machine's interfaces "
            f"({error.strerror}); `eplbd share cluster` prints the drop-in that lets it"
        ) from error


def _proved(frame: zmq.Frame) -> bytes:
    """The key of the connection that this frame came over."""
    try:
        return str(frame.get("User-Id")).encode()
    except zmq.ZMQError:
        return b""
