"""A group of two real agents over a real socket: threads as ranks, and a daemon that tests turn.

The daemon is the real core behind a socket; it does nothing unless a test calls `turn`, dies where
a test wants it to, and asks a policy of a few lines.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Barrier, BrokenBarrierError, Event

import numpy as np
import zmq
from numpy.typing import NDArray

from eplbd.core import events as e
from eplbd.core import messages as m
from eplbd.core.node import Node
from eplbd.core.placement import Placement
from eplbd.core.settings import (
    BalanceSettings,
    EpochSettings,
    SessionSettings,
    Settings,
    TransferSettings,
)
from eplbd.errors import RemoteProtocolError
from eplbd.wire.messages import AGENT, LEADER
from eplbd.worker.agent import AgentThread, Identity, Parts
from eplbd.worker.memory import MemoryCounters, MemoryExecutor, MemoryFabric
from eplbd.worker.register import MemoryRegister
from eplbd.worker.ring import HeatRing
from tests.worker.waiting import DEADLINE_S, aside, until

RANKS, EXPERTS, SLOTS = 2, 4, 3
TOPIC_FORWARDS = 100
PERIOD_S = 0.001

EAGER = Settings(
    balance=BalanceSettings(
        interval_s=0.05,
        window_steps=32,
        min_steps=16,
        par_trigger=1.0,
        horizon_s=86_400.0,
        min_gain=0.0,
        pause_s=0.05,
    ),
    epoch=EpochSettings(resend_s=0.05, margin_forwards=24, settle_timeout_s=2.0),
    transfer=TransferSettings(inflation_ceiling=100.0),
    session=SessionSettings(heartbeat_s=0.05, silence_s=0.4),
)
"""Everything soon, and any gain worth a move."""


class Daemon:
    """The real core on `endpoint`. dies_before: asked of each message about to be sent."""

    def __init__(self, endpoint: str, settings: Settings = EAGER) -> None:
        self.node = Node(settings)
        self.heard: list[m.Message] = []
        self.said: list[m.Message] = []
        self.ended: list[e.EpochEnded] = []
        self.dies_before: Callable[[m.Message], bool] = lambda _: False
        self.dead = False
        self._seq = 0
        self._context = zmq.Context()
        self.router = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.ROUTER_HANDOVER, 1),
            (zmq.RCVHWM, 16),
            (zmq.SNDHWM, 16),
        ):
            self.router.setsockopt(option, value)
        self.router.bind(endpoint)

    def turn(self) -> None:
        """Take what has come, or let a little time pass."""
        if self.dead:
            time.sleep(0.001)
        else:
            self._turn()

    def _turn(self) -> None:
        self.router.poll(2)
        self._take(e.Tick(time.monotonic()))
        for _ in range(64):
            try:
                peer, *frames = self.router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                seq, message = AGENT.decode(frames)
            except RemoteProtocolError as error:
                self._take(e.Garbled(peer, str(error)))
            else:
                self.heard.append(message)
                self._take(e.Received(peer, seq, message))
            if self.dead:
                return

    def until(self, happened: Callable[[], object], what: str) -> None:
        """Turn until it `happened`."""
        until(happened, what, self.turn)

    def die(self) -> None:
        """Be gone, as if killed."""
        self.dead = True
        self._context.destroy(linger=0)

    def _take(self, event: e.Event) -> None:
        for effect in self.node.step(event):
            if self.dead:
                return
            match effect:
                case e.Send(bytes() as peer, message):
                    self._send(peer, message)
                case e.AskPolicy(request):
                    self._take(e.PolicyAnswered(request, even(effect), 0.0))
                case e.EpochEnded():
                    self.ended.append(effect)
                case _:
                    pass

    def _send(self, peer: bytes, message: m.Message) -> None:
        if self.dies_before(message):
            self.die()
            return
        assert isinstance(message, m.FromLeader)
        self.said.append(message)
        self._seq += 1
        try:
            self.router.send_multipart([peer, *LEADER.encode(message, self._seq)], zmq.NOBLOCK)
        except zmq.Again:
            pass
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._take(e.Unreachable(peer))


def even(ask: e.AskPolicy) -> NDArray[np.int32]:
    """A policy: of all ways to give each rank three of the four experts, the one of least load."""
    slots = ask.current.slots.copy()
    held = list(itertools.combinations(range(EXPERTS), SLOTS))
    options = [np.array(pair, np.int32) for pair in itertools.permutations(held, RANKS)]
    for layer, total in enumerate(ask.heat.total):
        loads = [slowest(option, total) for option in (slots[layer], *options)]
        best = int(np.argmin(loads))
        if best:
            slots[layer] = options[best - 1]
    return slots


def slowest(layer: NDArray[np.int32], total: NDArray[np.int64]) -> float:
    """Load of the hotter rank."""
    load = total / np.bincount(layer.ravel(), minlength=EXPERTS)
    return float(load[layer].sum(axis=1).max())


class Rank:
    """One rank: its agent, its weights, its map, and a thread that runs forwards."""

    def __init__(self, group: Group, rank: int, *, odd: bool = False) -> None:
        self.group, self.rank = group, rank
        self.map = group.placement.slots
        self.epoch = 0
        self.flips: list[tuple[int, int]] = []
        layers = range(group.placement.layers)
        dtype = np.int16 if odd else np.int64
        self._weights = [
            (100 * layer + self.map[layer, rank]).astype(dtype)[:, None] for layer in layers
        ]
        self.executor = MemoryExecutor(group.fabric, rank, [{"w": w} for w in self._weights])
        self.counters = MemoryCounters(len(layers), SLOTS)
        self.ring = HeatRing(self.counters)
        self.agent = AgentThread(
            group.endpoint,
            Identity("g", "1", rank, "here"),
            group.placement,
            Parts(self.executor, self, self.ring, group.register),
            register_deadline_s=0.1,
        )

    @property
    def lane(self) -> int:
        return self.executor.lane

    @property
    def hook_forward(self) -> int:
        return self.agent.hook.forward

    def stage_maps(self, prepare: m.Prepare) -> Callable[[], None]:
        new = self.map.copy()
        new[prepare.layers] = prepare.slots

        def write() -> None:
            self.map, self.epoch = new, prepare.epoch
            self.flips.append((prepare.epoch, self.hook_forward))

        return write

    def serve(self) -> None:
        """Run forwards until the group ends."""
        try:
            while True:
                self.agent.hook.before_forward()
                self.group.meet(self.rank, self.hook_forward, self.epoch)
                self._compute()
                self.agent.hook.after_forward(8)
                if self.rank == 0:
                    self.group.ended.wait(PERIOD_S)
        except BrokenBarrierError:
            assert self.group.ended.is_set(), "the other rank is gone"

    def _compute(self) -> None:
        """Count what a topic's hot experts bring; the weights must be those that the map names."""
        topic = self.hook_forward // TOPIC_FORWARDS
        tokens = np.full(EXPERTS, 10, np.int32)
        tokens[[(topic + 1) % EXPERTS, (topic + 2) % EXPERTS]] = 1_000
        for layer, (held, weights) in enumerate(zip(self.map, self._weights, strict=True)):
            assert (weights[:, 0] == 100 * layer + held[self.rank]).all(), "routed to wrong weights"
            shares = tokens // np.bincount(held.ravel(), minlength=EXPERTS)
            self.counters.pass_counts[layer] = shares[held[self.rank]]
        self.counters.pass_routed[0] = self.counters.pass_counts.sum()


class Group:
    """Two ranks whose forwards are collective."""

    def __init__(self, endpoint: str, *, layers: int = 2, odd: int = -1) -> None:
        self.endpoint = endpoint
        self.placement = Placement.linear(layers, EXPERTS, RANKS, SLOTS)
        self.fabric, self.register = MemoryFabric(RANKS), MemoryRegister()
        self.ended = Event()
        self._barrier = Barrier(RANKS)
        self._epochs = np.zeros((2, RANKS), np.int64)
        self.ranks = [Rank(self, rank, odd=rank == odd) for rank in range(RANKS)]

    def meet(self, rank: int, forward: int, epoch: int) -> None:
        """Dispatch and combine: nobody passes alone, and all must be on one map."""
        mine = self._epochs[forward % 2]
        mine[rank] = epoch
        self._barrier.wait(DEADLINE_S)
        assert (mine == epoch).all(), f"forward {forward} ran under epochs {mine}"

    def end(self) -> None:
        """End the forwards, also those that wait for the other rank."""
        self.ended.set()
        self._barrier.abort()

    @property
    def forward(self) -> int:
        return min(rank.hook_forward for rank in self.ranks)

    def settled(self, epoch: int) -> bool:
        """Whether all agents know that they are on `epoch` or a later one."""
        return all(rank.agent.machine.epoch >= epoch for rank in self.ranks)

    def idle(self) -> bool:
        return all(rank.agent.machine.standing is m.Standing.IDLE for rank in self.ranks)

    def goes_on(self, forwards: int = 30) -> Callable[[], bool]:
        """A condition: that many more forwards have been run from now on."""
        goal = self.forward + forwards
        return lambda: self.forward >= goal

    def flips_agree(self) -> bool:
        """Whether the ranks came the same way; one may be a step ahead in the forward under way."""
        return all(a == b for a, b in zip(*(rank.flips for rank in self.ranks), strict=False))


@contextmanager
def serving(endpoint: str, *, layers: int = 2, odd: int = -1) -> Iterator[Group]:
    """A group that runs forwards; what its forward threads object to is raised at the end."""
    group = Group(endpoint, layers=layers, odd=odd)
    with ExitStack() as stack:
        for rank in group.ranks:
            stack.enter_context(rank.agent)
        for rank in group.ranks:
            stack.enter_context(aside(rank.serve, f"the forwards of rank {rank.rank}"))
        try:
            yield group
        finally:
            group.end()
