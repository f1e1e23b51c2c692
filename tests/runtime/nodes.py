"""Ends of connections between nodes, with real sockets: doors, uplinks, and whoever knocks."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import anyio
import zmq
import zmq.asyncio

from eplbd.core.cluster import Address
from eplbd.runtime.door import Door, Letter, open_door
from eplbd.runtime.keys import KeyPair, Trust
from eplbd.runtime.uplink import Uplink
from tests.runtime.conftest import PATIENCE_S

MIB = 1 << 20


def free_endpoint() -> str:
    """An address of the loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def new_pair() -> KeyPair:
    """Keys of a node that nobody knows yet."""
    return KeyPair(*zmq.curve_keypair())


def trusting(*pairs: KeyPair) -> Trust:
    """A directory of these, as node-0, node-1 and so on."""
    return Trust({pair.public: f"node-{index}" for index, pair in enumerate(pairs)})


async def until(happened: Callable[[], object], what: str = "") -> None:
    """Return once it happened; fail if it does not."""
    try:
        with anyio.fail_after(PATIENCE_S):
            while not happened():  # noqa: ASYNC110 - libzmq's own thread has no event to wait for
                await anyio.sleep(0.005)
    except TimeoutError as error:
        raise AssertionError(f"did not happen: {what}") from error


@dataclass
class Opened:
    """A door, and everything that came to it."""

    door: Door
    endpoint: str
    pair: KeyPair
    letters: list[Letter] = field(default_factory=list)
    refused: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return Address(self.endpoint, self.pair.public.decode())

    def take(self, letters: list[Letter]) -> None:
        self.letters += letters
        for letter in letters:
            self.door.keep_route(letter)

    def heard(self, key: bytes) -> list[list[bytes]]:
        return [letter.frames for letter in self.letters if letter.key == key]


@contextlib.asynccontextmanager
async def opened(
    trust: Trust, endpoint: str = "", pair: KeyPair | None = None
) -> AsyncIterator[Opened]:
    """A door that is open to these."""
    endpoint, pair = endpoint or free_endpoint(), pair or new_pair()
    with zmq.asyncio.Context() as context:
        refused: list[tuple[str, bytes]] = []
        with open_door(context, endpoint, pair, MIB, lambda *why: refused.append(why)) as door:
            door.admit(trust)
            made = Opened(door, endpoint, pair, refused=refused)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(door.run, made.take)
                yield made
                tasks.cancel_scope.cancel()


@dataclass
class Dialled:
    """An uplink, and what came down."""

    link: Uplink
    letters: list[list[bytes]]
    reasons: list[str]


@contextlib.asynccontextmanager
async def dialled(leader: Address, pair: KeyPair) -> AsyncIterator[Dialled]:
    """An uplink that somebody holds."""
    reasons: list[str] = []
    with zmq.asyncio.Context() as context:
        link = Uplink(context, leader, pair, MIB, reasons.append)
        made = Dialled(link, [], reasons)

        def take(letters: list[list[bytes]]) -> None:
            made.letters.extend(letters)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.run, take)
            yield made
            tasks.cancel_scope.cancel()


@contextlib.contextmanager
def knocking(
    leader: Address, pair: KeyPair | None, *, server_key: bytes = b"", identity: bytes = b""
) -> Iterator[zmq.Socket[bytes]]:
    """A bare socket that speaks to a door; without a pair, in plain text."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as made:
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.IMMEDIATE, 1)
        if identity:
            made.setsockopt(zmq.IDENTITY, identity)
        if pair is not None:
            made.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
            made.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
            made.setsockopt(zmq.CURVE_SERVERKEY, server_key or leader.key.encode())
        made.connect(leader.endpoint)
        yield made


async def say(knocker: zmq.Socket[bytes], frames: Sequence[bytes]) -> None:
    """Send as soon as there is somebody to send to."""

    def sent() -> bool:
        try:
            knocker.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    await until(sent, "a connection took it")
