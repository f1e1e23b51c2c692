"""Sockets between nodes: tcp, always with CURVE (RFC 26), and what is the same at both ends.

Owns the marks, caps and patience of such a socket, and what libzmq tells of its connections. Must
not know which end it is, nor what is said.

The figures, and why:

- High water marks of 32: a turn makes one bundle at most, so these are seconds of them; a bundle
  that finds no room is dropped and counted, and what it said is said again by whoever said it.
- A handshake takes two round trips. Whoever needs more than three seconds for it holds one of our
  file descriptors for nothing.
- The kernel finds a dead host or a network that is cut: what nobody acknowledges ends a connection
  as early as our own signs of life do, and so do unanswered probes of one that is idle. Not ZMTP's
  heartbeats, which may abort the process (see `link`). An attempt to connect is given up as early,
  since the system's own would wait for minutes, and longer after each failure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeAlias

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from eplbd.runtime.keys import KeyPair

HIGH_WATER = 32
SILENCE_S = 3
PROBE_S = 1
BATCH = 64
"""Messages taken per turn, as at the workers' door."""

MISMATCH = 0x11000002
"""libzmq's ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: the other end does not speak CURVE."""


@contextlib.contextmanager
def curve_socket(
    context: zmq.asyncio.Context, kind: int, pair: KeyPair, max_message_bytes: int
) -> Iterator[zmq.asyncio.Socket]:
    """A socket that proves itself with `pair`, neither bound nor connected; closed at the end.

    max_message_bytes: a frame that is larger disconnects its sender.
    """
    with context.socket(kind) as made:
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.IPV6, 1)
        made.setsockopt(zmq.RCVHWM, HIGH_WATER)
        made.setsockopt(zmq.SNDHWM, HIGH_WATER)
        made.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        for patience in (zmq.HANDSHAKE_IVL, zmq.CONNECT_TIMEOUT, zmq.TCP_MAXRT):
            made.setsockopt(patience, SILENCE_S * 1_000)
        made.setsockopt(zmq.TCP_KEEPALIVE, 1)
        made.setsockopt(zmq.TCP_KEEPALIVE_IDLE, PROBE_S)
        made.setsockopt(zmq.TCP_KEEPALIVE_INTVL, PROBE_S)
        made.setsockopt(zmq.TCP_KEEPALIVE_CNT, SILENCE_S // PROBE_S)
        made.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
        made.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
        yield made


class Monitor:
    """What libzmq tells of a socket's connections, of some kinds of events."""

    def __init__(self, pair: zmq.asyncio.Socket) -> None:
        self._pair = pair

    async def event(self) -> tuple[zmq.Event, int]:
        """Wait for the next; its kind, and the figure that comes with it."""
        told = parse_monitor_message(await self._pair.recv_multipart())
        return zmq.Event(told["event"]), told["value"]


@contextlib.contextmanager
def monitored(socket: zmq.asyncio.Socket, events: int) -> Iterator[Monitor]:
    """Watch a socket while the block runs."""
    pair = socket.get_monitor_socket(events)
    try:
        yield Monitor(pair)
    finally:
        socket.disable_monitor()
        pair.close(linger=0)


NodeContext: TypeAlias = zmq.asyncio.Context


def node_context() -> NodeContext:
    """A context for the sockets between nodes alone, so that no flood of theirs delays a worker."""
    return zmq.asyncio.Context(io_threads=1)
