"""All ranks of a group in one process, on real sockets to a real daemon.

The agents are the real machines, their engine is `tests.sim`'s, and the traffic shifts. Whatever
must never be false is asserted after every forward: one map on all ranks, and in every slot the
bytes of the expert that the map routes to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import zmq
from numpy.typing import NDArray

from eplbd.core import messages as m
from eplbd.core.placement import Placement
from eplbd.errors import RemoteProtocolError
from eplbd.offline.cluster.engine import Store
from eplbd.wire.messages import LEADER
from eplbd.worker.outbox import Outbox
from tests.sim.rank import SimRank
from tests.sim.transport import Transport

HIGH_WATER = 16
REPORT_STEPS = 16
"""Forwards per report of heat, as the worker's ring has them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of the group, and what its traffic is like."""

    layers: int = 4
    experts: int = 32
    ranks: int = 4
    slots_per_rank: int = 10
    shift_forwards: int = 12_000
    """After so many forwards the traffic is about something else."""
    loss: float = 0.0
    """Share of messages, heat or control, in either direction, that never arrive."""


class Fleet:
    """A group, turned forward by forward. Made by `attached`."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, shape: Shape
    ) -> None:
        self.shape = shape
        self.flips = self.forwards = self.lost = self.lives = 0
        """flips: maps that came into force, lives: of the engine; forwards: of all lives."""
        self._context, self._endpoint = context, endpoint
        self._random = np.random.default_rng(17)
        self._sockets: list[zmq.Socket[bytes]] = []
        self.restart()

    def restart(self) -> None:
        """The engine starts anew, on its initial layout and without a memory."""
        self.close()
        shape = self.shape
        self.lives += 1
        initial = Placement.linear(shape.layers, shape.experts, shape.ranks, shape.slots_per_rank)
        self.ranks = [SimRank(rank, initial, f"{self.lives:04}") for rank in range(shape.ranks)]
        self._sockets = [self._connected(rank) for rank in range(shape.ranks)]
        self._outboxes = [Outbox(partial(self._post, socket)) for socket in self._sockets]
        self._transport = Transport(self.ranks)
        self._store = Store()
        self._window = 0
        """Forwards under the map in force that were not reported."""

    def close(self) -> None:
        """Leave without a word, as an engine that is killed."""
        for socket in self._sockets:
            socket.close()

    def turn(self) -> None:
        """Everything that is due, and one forward unless it waits for the register."""
        now = time.monotonic()
        for rank, me in enumerate(self.ranks):
            me.tick(now)
            for heard in self._heard(rank):
                me.heard(heard)
            if me.stager:
                self._transport.run(rank)
            while me.questions:
                self._store.answer(me, me.questions.popleft())
        if not any(me.blocked for me in self.ranks):
            self._forward()
        for me, outbox in zip(self.ranks, self._outboxes, strict=True):
            for message in me.outbox:
                outbox.say(message)
            me.outbox.clear()
            outbox.flush()

    @property
    def attached(self) -> bool:
        """Whether every rank has a session with the daemon."""
        return all(me.agent.connected for me in self.ranks)

    # --- network --------------------------------------------------------------------------------

    def _connected(self, rank: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.SNDHWM, HIGH_WATER),
            (zmq.RCVHWM, HIGH_WATER),
            (zmq.RECONNECT_IVL, 50),
        ):
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.IDENTITY, f"r{rank}.{self.lives}".encode())
        socket.connect(self._endpoint)
        return socket

    def _dropped(self) -> bool:
        dropped = bool(self._random.random() < self.shape.loss)
        self.lost += dropped
        return dropped

    def _post(self, socket: zmq.Socket[bytes], frames: Sequence[bytes | memoryview]) -> bool:
        if self._dropped():
            return True
        try:
            socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _heard(self, rank: int) -> Iterator[m.FromLeader]:
        socket = self._sockets[rank]
        while socket.poll(0):
            frames = socket.recv_multipart()
            if not self._dropped():
                try:
                    yield LEADER.decode(frames)[1]
                except RemoteProtocolError as error:
                    raise AssertionError(f"the daemon speaks another language: {error}") from error

    # --- engine ---------------------------------------------------------------------------------

    def _forward(self) -> None:
        before = [me.map for me in self.ranks]
        for me in self.ranks:
            me.run_forward()
        self.forwards += 1
        if any(me.map is not old for me, old in zip(self.ranks, before, strict=True)):
            digests = {me.map.digest for me in self.ranks}
            assert len(digests) == 1, f"forward {self.ranks[0].forward}: {digests}"
            self.flips += 1
            self._window = 0
            for me in self.ranks:
                me.check_contents()
        self._window += 1
        if self._window >= REPORT_STEPS:
            self._window = 0
            self._report(self.ranks[0].map)

    def _report(self, placement: Placement) -> None:
        """What the last forwards counted, each rank its own; lost where the socket is full."""
        counts = self._counts(placement)
        steps = len(counts)
        for me, outbox in zip(self.ranks, self._outboxes, strict=True):
            if not me.agent.connected or me.agent.placement.digest != placement.digest:
                continue
            mine = np.ascontiguousarray(counts[:, :, me.rank])
            outbox.report(
                m.HeatReport(
                    epoch=me.agent.epoch,
                    first_forward=me.forward - steps + 1,
                    phase="decode",
                    counts=mine,
                    routed=mine.sum(axis=(1, 2), dtype=np.int64),
                    tokens=np.full(steps, 256, np.int32),
                    dummy=np.zeros(steps, np.bool_),
                )
            )

    def _counts(self, placement: Placement) -> NDArray[np.int32]:
        """`[steps, layers, ranks, slots]`: the topic's heat, dealt out evenly over replicas."""
        shape, slots = self.shape, placement.slots
        topic = np.random.default_rng(self.forwards // shape.shift_forwards)
        heat = topic.pareto(1.2, (shape.layers, shape.experts)) * 50.0 + 10.0
        held = np.stack([np.bincount(row.ravel(), minlength=shape.experts) for row in slots])
        each = np.take_along_axis(heat / held, slots.reshape(shape.layers, -1), axis=1)
        noise = self._random.uniform(0.8, 1.2, (REPORT_STEPS, *each.shape)).astype(np.float32)
        counts: NDArray[np.int32] = (noise * each).astype(np.int32)
        return counts.reshape(REPORT_STEPS, *slots.shape)


@contextmanager
def attached(endpoint: str, shape: Shape) -> Iterator[Fleet]:
    """A group that connects to a daemon, there or not yet, and leaves at the end."""
    with zmq.Context() as context, ExitStack() as stack:
        fleet = Fleet(context, endpoint, shape)
        stack.callback(fleet.close)
        yield fleet
