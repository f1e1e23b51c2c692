"""Between hosts: latency, loss, repetition, cuts.

Keeps what one host sends to another in order, as a connection does; loses and repeats whole
messages, which a connection does only where it breaks: harsher than tcp. Owns chance on the way and
the count of it. Must not know what is sent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from eplbd.offline.cluster.loop import Happening, Loop

LOCAL_S = 1e-4
"""From a thread to its node's daemon and back: a socket of the machine, and being woken up."""


@dataclass(frozen=True, slots=True)
class Quality:
    """latency_s: one way. jitter: share of it by which a message may take longer.

    loss, repetition: share of messages.
    """

    latency_s: float = 5e-4
    jitter: float = 0.5
    loss: float = 0.0
    repetition: float = 0.0


@dataclass(frozen=True, slots=True)
class Cut:
    """From `begin` to `end`, seconds, nothing passes between `hosts` and the others."""

    begin: float
    end: float
    hosts: frozenset[int]


class Network:
    """The daemons' network. The engine's own is another one: cuts do not stop forwards."""

    def __init__(self, loop: Loop, quality: Quality, cuts: tuple[Cut, ...], seed: int) -> None:
        self._loop, self._quality, self._cuts = loop, quality, cuts
        self._random = Random(f"network {seed}")  # noqa: S311  # no secret
        self._last: dict[tuple[int, int], float] = {}
        self.counts: Counter[str] = Counter()

    def send(self, source: int, target: int, arrive: Happening) -> None:
        """Let `arrive` happen when the message reaches the other host, or never, or twice."""
        if source == target:
            self._loop.after(LOCAL_S, arrive)
            return
        quality, random = self._quality, self._random
        if self._is_cut(source, target):
            self.counts["cut"] += 1
            return
        if quality.loss and random.random() < quality.loss:
            self.counts["lost"] += 1
            return
        delay_s = quality.latency_s * (1 + quality.jitter * random.random())
        due = max(self._loop.now + delay_s, self._last.get((source, target), 0.0))
        self._last[source, target] = due
        self._loop.at(due, arrive)
        self.counts["sent"] += 1
        if quality.repetition and random.random() < quality.repetition:
            self.counts["repeated"] += 1
            self._loop.at(due + delay_s, arrive)

    def _is_cut(self, source: int, target: int) -> bool:
        now = self._loop.now
        return any(
            cut.begin <= now < cut.end and (source in cut.hosts) != (target in cut.hosts)
            for cut in self._cuts
        )
