"""The other end of the event stream: every event once and in order, as far as the daemon keeps it.

Owns how a reader catches up: it subscribes first, asks for all that is kept, and from then on the
numbers tell what it missed; that it asks for. A restarted daemon looks like a gap. Must not know
what an event means. Belongs to whoever watches, not to the daemon.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import anyio
import zmq
import zmq.asyncio

from eplbd.config import Config, stream_endpoints
from eplbd.errors import ConfigError
from eplbd.runtime.endpoint import knock
from eplbd.wire import stream as wire

ANSWER_S = 5.0
"""Patience with a whole answer: milliseconds, unless the daemon's machine is short of a core."""

QUEUED = 4_096
RECONNECT_MS = 200


class Follower:
    """A reader's place in the stream. Made by `follow`; belongs to the loop that runs."""

    def __init__(
        self, context: zmq.asyncio.Context, subscriber: zmq.asyncio.Socket, replay: str
    ) -> None:
        self._context, self._subscriber, self._replay = context, subscriber, replay
        self._seq = 0
        """Number of the newest event that was returned."""

    async def catch_up(self) -> list[wire.Told]:
        """Events that are kept and were not returned yet, and a snapshot of this moment.

        Raises:
            ConfigError: Nobody answers.
            RemoteProtocolError: The answer is none that this version understands.
        """
        heard: list[tuple[int, wire.Told]] = []
        # A socket per question: what is late for an older one has nowhere to arrive.
        with self._context.socket(zmq.DEALER) as asker:
            asker.setsockopt(zmq.LINGER, 0)
            asker.setsockopt(zmq.RCVHWM, 0)
            asker.setsockopt(zmq.MAXMSGSIZE, wire.MAX_EVENT_BYTES)
            asker.connect(self._replay)
            with anyio.move_on_after(ANSWER_S):
                await asker.send_multipart([b"", wire.number(self._seq + 1)])
                while answer := wire.answered(await asker.recv_multipart()):
                    heard.append(answer)
                self._seq = heard[-1][0]
                return [event for _, event in heard]
        raise ConfigError(
            f"stream.socket: no answer on {self._replay} within {ANSWER_S:g} s; is the daemon "
            "running? (`systemctl status eplbd`)"
        )

    async def next(self) -> list[wire.Told]:
        """Wait for something new; what was missed comes with it. Raises as `catch_up` does.

        The list is empty for what a former answer held already.
        """
        seq, event = wire.published(await self._subscriber.recv_multipart())
        if isinstance(event, wire.Snapshot):
            if seq == self._seq:
                return [event]
            if seq < self._seq:
                self._seq = 0  # the daemon was restarted, and its machine's clock set back
            return await self.catch_up()
        if seq <= self._seq:
            return []
        if seq > self._seq + 1:
            return await self.catch_up()
        self._seq = seq
        return [event]


@contextlib.contextmanager
def follow(config: Config) -> Iterator[Follower]:
    """Subscribe to the events of the daemon that has this configuration, while the block runs.

    Raises:
        ConfigError: It tells nothing, is not there, or may not be asked.
    """
    if not config.stream.enabled:
        raise ConfigError("stream.enabled is false: this daemon tells nothing; set it to true")
    events, replay = stream_endpoints(config)
    for endpoint in (events, replay):
        knock(endpoint, "stream.socket", ANSWER_S)
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.asyncio.Context(io_threads=1))
        subscriber = stack.enter_context(context.socket(zmq.SUB))
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.setsockopt(zmq.RCVHWM, QUEUED)
        subscriber.setsockopt(zmq.MAXMSGSIZE, wire.MAX_EVENT_BYTES)
        subscriber.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.connect(events)
        yield Follower(context, subscriber, replay)
