"""What the agent has to say and the socket does not take yet: control waits its turn, heat never.

Owns the queue between the agent and its socket, and the count of what was given up. It must not
know sockets (it is given one's sending), nor what a message does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from eplbd.core import messages as m
from eplbd.wire.messages import AGENT

KEPT = 64
"""Control messages. An epoch is six answers, so this is ten epochs that a daemon did not read."""

_SIGNS = (m.Hello, m.Pulse)
"""Signs of life: the newest says all that the one before it said."""


class Outbox:
    """Sends in order, control before heat.

    post: takes the frames of a message and tells whether they are on their way; never waits.
    """

    def __init__(self, post: Callable[[Sequence[bytes | memoryview]], bool]) -> None:
        self._post = post
        self._kept: deque[m.FromAgent] = deque()
        self.sent = 0
        self.dropped = 0
        """Control messages given up, the oldest first: the daemon asks again."""
        self.lost_steps = 0
        """Steps of heat that found the socket full."""

    def say(self, message: m.FromAgent) -> None:
        """Send control, now or as soon as the socket takes it."""
        kept = self._kept
        if kept and isinstance(message, _SIGNS) and isinstance(kept[-1], type(message)):
            kept.pop()
        kept.append(message)
        self.flush()
        if len(kept) > KEPT:
            kept.popleft()
            self.dropped += 1

    def report(self, heat: m.HeatReport) -> None:
        """Send heat, now or never."""
        if not self.flush() or not self._send(heat):
            self.lost_steps += len(heat.tokens)

    def flush(self) -> bool:
        """Send what was kept; whether nothing is left."""
        while self._kept:
            if not self._send(self._kept[0]):
                return False
            self._kept.popleft()
        return True

    def _send(self, message: m.FromAgent) -> bool:
        sent = self._post(AGENT.encode(message, self.sent + 1))
        self.sent += sent
        return sent
