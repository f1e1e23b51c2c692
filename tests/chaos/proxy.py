"""A relay between workers and daemon that understands what passes, and may interfere.

Workers connect to `front` instead of the daemon. For each of them the relay keeps a connection of
its own to `back`, under the worker's identity, so the daemon sees the peers that it would see
without it. A rule may drop, repeat or hold back any message, and do something to the world at the
very moment a message passes.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

import zmq

from eplbd.core import messages as m
from eplbd.wire.messages import AGENT, LEADER
from eplbd.worker.agent import REDIAL_S

POLL_MS, IDLE_MS = 5, 50
SEND_BUFFER = 1_000
STORY = 400
UNKNOWN = -1
DROP: tuple[float, ...] = ()
PASS: tuple[float, ...] = (0.0,)


@dataclass(frozen=True, slots=True)
class Passing:
    """A message at the relay. upward: to the daemon."""

    upward: bool
    rank: int
    message: m.Message

    def __str__(self) -> str:
        """Short, for stories."""
        names = ("term", "epoch", "attempt", "at", "gate", "verdict", "standing", "reason", "rank")
        values = ((name, getattr(self.message, name, None)) for name in names)
        said = " ".join(f"{name}={value}" for name, value in values if value not in (None, ""))
        return f"{'<-' if self.upward else '->'} {self.rank} {type(self.message).__name__} {said}"


Rule: TypeAlias = Callable[[Passing], Sequence[float] | None]
"""After how many seconds each copy goes on: `DROP` none, `PASS` one at once; None: no opinion."""

_Delivery: TypeAlias = tuple[float, int, bytes, bool, list[bytes]]
QUIET = m.Pulse | m.Beat | m.HeatReport


class Proxy:
    """The relay; enter it to start its thread."""

    def __init__(self, front: str, back: str) -> None:
        self.front, self.back = front, back
        self.counts: Counter[str] = Counter()
        self.story: deque[str] = deque(maxlen=STORY)
        self._rules: tuple[Rule, ...] = ()
        self._ranks: dict[bytes, int] = {}
        self._dealers: dict[bytes, zmq.Socket[bytes]] = {}
        self._names: dict[bytes, bytes] = {}
        """Under which the daemon knows each worker: another for every line, as workers have."""
        self._redial_at: dict[bytes, float] = {}
        self._later: list[_Delivery] = []
        self._order = itertools.count()
        self._context = zmq.Context()
        self._leave = False
        self._trouble: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave = True
        self._thread.join()
        self._context.destroy(linger=0)

    def identity(self, rank: int) -> bytes:
        """How the daemon knows this rank's worker."""
        newest = [identity for identity, known in self._ranks.items() if known == rank][-1]
        return self._names[newest]

    @contextlib.contextmanager
    def obeying(self, rule: Rule) -> Iterator[None]:
        """Ask this rule first, while the block runs."""
        self._rules = (rule, *self._rules)
        try:
            yield
        finally:
            self._rules = tuple(each for each in self._rules if each is not rule)
            if self._trouble:
                raise self._trouble.pop()

    # --- the relay's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        router = self._router = self._socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        router.bind(self.front)
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        while not self._leave:
            ready = dict(poller.poll(POLL_MS if self._later else IDLE_MS))
            if router in ready:
                for identity, *frames in self._drain(router):
                    if time.monotonic() > self._redial_at.get(identity, 0.0):
                        self._redial(identity, poller)
                    self._take(identity, frames, upward=True)
            for identity, dealer in self._dealers.items():
                if dealer in ready:
                    for frames in self._drain(dealer):
                        self._redial_at[identity] = time.monotonic() + REDIAL_S
                        self._take(identity, frames, upward=False)
            self._deliver()

    def _redial(self, identity: bytes, poller: zmq.Poller) -> None:
        """Where a line brings nothing back: so does its worker, and only gets as far as here."""
        if identity in self._dealers:
            poller.unregister(self._dealers[identity])
            self._dealers[identity].close()
        self._names[identity] = b"%s.%d" % (identity, time.monotonic_ns())
        self._dealers[identity] = self._connect(self._names[identity])
        poller.register(self._dealers[identity], zmq.POLLIN)
        self._redial_at[identity] = time.monotonic() + REDIAL_S

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        for option in (zmq.SNDHWM, zmq.RCVHWM):
            socket.setsockopt(option, SEND_BUFFER)
        socket.setsockopt(zmq.LINGER, 0)
        return socket

    def _connect(self, identity: bytes) -> zmq.Socket[bytes]:
        dealer = self._socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, identity)
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.connect(self.back)
        return dealer

    def _drain(self, socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
        with contextlib.suppress(zmq.Again):
            while True:
                yield socket.recv_multipart(zmq.NOBLOCK)

    def _take(self, identity: bytes, frames: list[bytes], *, upward: bool) -> None:
        message = (AGENT if upward else LEADER).decode(frames)[1]
        if isinstance(message, m.Hello):
            self._ranks[identity] = message.rank
        passing = Passing(upward, self._ranks.get(identity, UNKNOWN), message)
        fate = self._fate(passing)
        if not isinstance(message, QUIET):
            self.story.append(f"{time.monotonic():.3f} {passing} {'' if fate == PASS else fate}")
        for delay_s in fate:
            if delay_s:
                due = time.monotonic() + delay_s
                heapq.heappush(self._later, (due, next(self._order), identity, upward, frames))
            else:
                self._pass_on(identity, frames, upward=upward)

    def _fate(self, passing: Passing) -> tuple[float, ...]:
        for rule in self._rules:
            try:
                fate = rule(passing)
            except BaseException as error:  # noqa: BLE001 - a test's rule: its test shall fail
                self._trouble.append(error)
                return PASS
            if fate is not None:
                return tuple(fate)
        return PASS

    def _deliver(self) -> None:
        """Pass on what was held back long enough."""
        while self._later and self._later[0][0] <= time.monotonic():
            _, _, identity, upward, frames = heapq.heappop(self._later)
            self._pass_on(identity, frames, upward=upward)

    def _pass_on(self, identity: bytes, frames: list[bytes], *, upward: bool) -> None:
        try:
            if upward:
                self._dealers[identity].send_multipart(frames, zmq.NOBLOCK)
            else:
                self._router.send_multipart([identity, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # Nobody there, or a queue is full: what a network would lose.
            self.counts[f"lost: {error}"] += 1
