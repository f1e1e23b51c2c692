"""What the daemon's tests share: a worker's end of the socket, and conditions with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
import zmq

PATIENCE_S = 30.0
"""How long a test waits for what must happen; only a failing test waits so long."""


def wait_until(happened: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Return once `happened`; fail with `what` (as it is then, if it is called) if it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen: {what if isinstance(what, str) else what()}")
        time.sleep(0.005)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    """Where a daemon of the test listens."""
    return f"ipc://{tmp_path}/w.sock"


Connect: TypeAlias = Callable[[bytes], zmq.Socket[bytes]]


@pytest.fixture
def connect(endpoint: str) -> Iterator[Connect]:
    """A worker's connected socket, given its identity; one that gives up rather than hangs."""
    with zmq.Context() as context, ExitStack() as sockets:

        def connected(identity: bytes) -> zmq.Socket[bytes]:
            made = sockets.enter_context(context.socket(zmq.DEALER))
            made.setsockopt(zmq.LINGER, 0)
            made.setsockopt(zmq.IDENTITY, identity)
            made.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1_000))
            made.setsockopt(zmq.SNDTIMEO, int(PATIENCE_S * 1_000))
            made.connect(endpoint)
            return made

        yield connected
