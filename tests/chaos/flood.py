"""A local process that may connect and means ill: `python -m tests.chaos.flood KIND ENDPOINT`.

Says as much as the socket takes, until its standard input ends or somebody kills it; at the end of
every tenth of a second a line says how much that was. Owns the floods, by kind. It speaks the wire,
not the protocol: nothing that comes back is read.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import zmq

from eplbd.core import messages as m
from eplbd.core.placement import Placement
from eplbd.wire.messages import AGENT
from tests.hellos import hello as plain

Frames = list[bytes]
Words = Iterator[tuple[int, Frames]]
"""Which connection says what next."""

HUGE_BYTES = 60 << 20
LINE_S = 0.1

HELLO = plain(group="flood", incarnation="0", node="elsewhere")


def _said(message: m.FromAgent, seq: int = 1) -> Frames:
    return [bytes(frame) for frame in AGENT.encode(message, seq)]


def _heat(layers: int, slots: int, first: int, steps: int) -> m.HeatReport:
    counts = np.ones((steps, layers, slots), dtype=np.int32)
    return m.HeatReport(
        epoch=0,
        first_forward=first,
        phase="all",
        counts=counts,
        routed=counts.sum(axis=(1, 2), dtype=np.int64),
        tokens=np.ones(steps, dtype=np.int32),
        dummy=np.zeros(steps, dtype=np.bool_),
    )


def _stands(hello: m.Hello, term: int = 1) -> m.Stands:
    placed = Placement.linear(hello.layers, hello.experts, hello.ranks, hello.slots_per_rank)
    idle = m.Standing.IDLE
    return m.Stands(term, 0, placed.digest, idle, 0, 0, 0, placed.slots)


def heat() -> Words:
    """Heat of a group that says hello and is there: as much of it as there can be."""
    for peer in range(16):
        hello = replace(HELLO, group=f"flood{peer}", layers=58, experts=256, slots_per_rank=256)
        yield peer, _said(hello)
        yield peer, _said(_stands(hello))
    for first in itertools.count(0, 16):
        frames = _said(_heat(58, 256, first, 16))
        for peer in range(16):
            yield peer, frames


def strangers() -> Words:
    """Heat and pulses of nobody who has a session."""
    said = [_said(_heat(58, 9, 1, 16)), _said(m.Pulse(1)), _said(_stands(HELLO))]
    for turn in itertools.count():
        yield turn % 16, said[turn % len(said)]


def hellos() -> Words:
    """Groups without end, each as large as is taken, from ever new peers."""
    for turn in itertools.count():
        large = replace(HELLO, ranks=1 << 16, experts=1 << 16, slots_per_rank=1)
        yield turn % 64, _said(replace(large, group=f"group{turn}", rank=turn % (1 << 16)))


def garbage() -> Words:
    """Noise, some of it like a message."""
    pulse = _said(m.Pulse(1))[0]
    for turn in itertools.count():
        yield turn % 16, [pulse[: turn % len(pulse)] + os.urandom(64), *[b"x"] * (turn % 40)]


def huge() -> Words:
    """Frames just small enough to be taken, on many connections at once."""
    frames = [b"\x81", bytes(HUGE_BYTES)]
    for turn in itertools.count():
        yield turn % 32, frames


def vast() -> Words:
    """A model larger than any, and heat of it: small messages that stand for large books."""
    hello = replace(HELLO, layers=128, experts=8_192, slots_per_rank=8_192)
    for peer in range(16):
        named = replace(hello, group=f"vast{peer}")
        yield peer, _said(named)
        yield peer, _said(_stands(named))
    for first in itertools.count():
        frames = _said(_heat(128, 8_192, first, 1))
        for peer in range(16):
            yield peer, frames


def connections() -> Words:
    """A connection for every word, and none is closed."""
    for turn in itertools.count():
        yield turn, _said(m.Pulse(1))


KINDS: dict[str, Callable[[], Words]] = {
    kind.__name__: kind for kind in (heat, strangers, hellos, garbage, huge, vast, connections)
}


def main(kind: str, endpoint: str) -> None:
    """Flood until killed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 16_384)
    dealers: dict[int, zmq.Socket[bytes]] = {}
    sent = 0
    told = time.monotonic()
    for peer, frames in KINDS[kind]():
        if peer not in dealers:
            dealers[peer] = dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.IDENTITY, b"%s%d" % (kind.encode(), peer))
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.SNDHWM, 16)
            dealer.setsockopt(zmq.SNDTIMEO, 50)
            dealer.connect(endpoint)
        with contextlib.suppress(zmq.Again):
            dealers[peer].send_multipart(frames, copy=False)
            sent += 1
        if time.monotonic() - told > LINE_S:
            told = time.monotonic()
            os.write(1, b"%d\n" % sent)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
