"""The agent thread: the worker's only socket, around the epoch machine of `eplbd.core.agent`.

Owns the DEALER, the inbox of the other threads and the order in which they are served. Must not
know torch, nor decide anything: the machine does. The forward thread is never waited for and never
made to wait, whatever becomes of the daemon, the socket or this thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic, monotonic_ns
from typing import Self

import zmq

from eplbd.core import agent_events as e
from eplbd.core import messages as m
from eplbd.core.agent import Agent
from eplbd.core.events import Tick
from eplbd.core.messages import Verdict
from eplbd.core.placement import Placement
from eplbd.errors import RemoteProtocolError
from eplbd.wire.messages import LEADER
from eplbd.worker.executor import Executor
from eplbd.worker.hook import Arm, ForwardHook
from eplbd.worker.outbox import Outbox
from eplbd.worker.register import DecisionRegister, RegisterError
from eplbd.worker.ring import HeatRing
from eplbd.worker.stager import Engine, Registrar, Stager

log = logging.getLogger("eplbd.worker")

POLL_MS = 50
"""Longest sleep: time goes on for the machine at least this often."""

STOP_S = 5.0
"""Each thread may take that long to end: the register has to decide an open flip, a peer to come
for the rest of a round."""

HIGH_WATER_MARK = 16
"""Messages that the socket keeps for a daemon that does not read; beyond, see `Outbox`."""

REDIAL_S = 5.0
"""Without a session for so long, the line may lead nowhere: somebody took its name meanwhile."""

RECEIVE_AT_ONCE = 64
"""Messages handled before the other threads are served again."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the agent says of itself in `Hello`; see there for the fields."""

    group: str
    incarnation: str
    rank: int
    node: str
    dispatch: m.Dispatch = m.Dispatch.ALL_TO_ALL
    counts: m.Counts = m.Counts.RECEIVED
    weighted: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """What the agent works with; all of this rank alone, `register` shared through its store."""

    executor: Executor
    engine: Engine
    ring: HeatRing
    register: DecisionRegister


@dataclass(frozen=True, slots=True)
class AgentStatistics:
    """Counts since attach.

    sent: messages to the daemon. dropped: control given up on a daemon that did not read.
    lost_steps: steps of heat that found the ring or the socket full. garbled: messages that were
    refused. stale: those about what is over.
    """

    sent: int
    dropped: int
    lost_steps: int
    garbled: int
    stale: int


class AgentThread:
    """One rank's agent. Enter it, call `hook` around every forward, leave it.

    socket: ZeroMQ endpoint of the node's daemon. placement: in force at attach, equal on all ranks.
    register_deadline_s: for one answer of the register.
    """

    def __init__(
        self,
        socket: str,
        identity: Identity,
        placement: Placement,
        parts: Parts,
        *,
        register_deadline_s: float = 2.0,
    ) -> None:
        self._socket, self.identity = socket, identity
        self.masked = False
        """Whether the engine gives this rank no tokens; an adapter says so, from any thread."""
        self._executor, self._ring, self._register = parts.executor, parts.ring, parts.register
        self._deadline_s = register_deadline_s
        self._inbox: deque[e.AgentEvent] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Not earlier: the forward thread may ring after the agent has left.
        weakref.finalize(self, os.close, self._wake).atexit = False
        self.machine = Agent(identity.rank, placement)
        self.hook = ForwardHook(parts.executor, parts.ring, self._tell)
        self._stager = Stager(identity.rank, parts.executor, parts.engine, self.hook, self._tell)
        self._registrar = Registrar(
            identity.group,
            parts.register,
            self._tell,
            incarnation=identity.incarnation,
            node=identity.node,
            deadline_s=register_deadline_s,
        )
        self._outbox = Outbox(self._post)
        self._arm: Arm | None = None
        """Open: the forward thread may have to wait for its verdict."""
        self._past: tuple[int, int, int] | None = None
        self._pulsed = (0, 0.0, 0, 0.0, 0, 0.0)
        self._garbled = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="eplbd-agent", daemon=True)

    # --- any thread -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start the three threads. No daemon need be there."""
        for thread in (self._stager.thread, self._registrar.thread, self._thread):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Say goodbye and end the threads; forwards may go on without them."""
        self._stopping = True
        self._ring_bell()
        self._thread.join(STOP_S)
        for other in (self._stager, self._registrar):
            other.stop()
            other.thread.join(STOP_S)

    @property
    def alive(self) -> bool:
        """Whether the agent thread runs."""
        return self._thread.is_alive()

    def statistics(self) -> AgentStatistics:
        """Return the counts."""
        outbox = self._outbox
        return AgentStatistics(
            outbox.sent, outbox.dropped, self._lost_steps, self._garbled, self.machine.stale
        )

    @property
    def _lost_steps(self) -> int:
        return self._ring.statistics().lost_steps + self._outbox.lost_steps

    def _tell(self, event: e.AgentEvent) -> None:  # from every thread but the agent's
        self._inbox.append(event)
        self._ring_bell()

    def _ring_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    # --- the agent thread -----------------------------------------------------------------------

    def _run(self) -> None:
        context = zmq.Context()
        try:
            self._dealer = self._dial(context)
            while self._serve():
                self._dealer.close(linger=0)
                self._dealer = self._dial(context)
        except Exception:
            # A supervisor: serving goes on with the map in force, and no flip is left undecided.
            log.exception("rank %d: the agent ended, balancing is off", self.identity.rank)
        finally:
            self._release()
            context.destroy(linger=100)

    def _dial(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        for option in (zmq.SNDHWM, zmq.RCVHWM):
            dealer.setsockopt(option, HIGH_WATER_MARK)
        # New with every line: libzmq 4.3 may abort a daemon that hands one name from line to line.
        own = f"r{self.identity.rank}.{self.identity.incarnation}.{os.getpid()}.{monotonic_ns()}"
        dealer.setsockopt(zmq.IDENTITY, own.encode()[-255:])
        dealer.connect(self._socket)
        return dealer

    def _serve(self) -> bool:
        """Until told to stop; or, True, until the line should be another."""
        redial_at = monotonic() + REDIAL_S
        poller = zmq.Poller()
        poller.register(self._dealer, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not self._stopping:
            ready = dict(poller.poll(POLL_MS))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            self._step(Tick(monotonic()))
            self._receive()
            while self._inbox:
                self._take(self._inbox.popleft())
            self._outbox.flush()
            self._report_heat()
            if self.machine.connected:
                redial_at = monotonic() + REDIAL_S
            elif monotonic() > redial_at:
                return True
        self._outbox.say(m.Bye("the worker leaves"))
        return False

    def _release(self) -> None:
        """Nobody serves the arm any more: let the register decide it before the thread is gone."""
        arm, self._arm = self._arm, None
        while arm is not None and arm.verdict is None:
            key = self._registrar.key(arm.term, arm.epoch, m.Gate.FLIP, arm.attempt)
            try:
                arm.resolve(self._register.decide(key, Verdict.ABORT, deadline_s=self._deadline_s))
            except RegisterError:
                log.warning("rank %d: the register does not answer", self.identity.rank)

    def _receive(self) -> None:
        for _ in range(RECEIVE_AT_ONCE):
            try:
                frames = self._dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                _, message = LEADER.decode(frames)
            except RemoteProtocolError as error:
                self._garbled += 1
                log.warning("rank %d: daemon's message refused: %s", self.identity.rank, error)
                continue
            if isinstance(message, m.Refused):
                self._registrar.refused(message.reason)
            self._step(e.Heard(message))

    def _take(self, event: e.AgentEvent) -> None:
        if isinstance(event, e.Neared) and self._arm is None:
            return  # The flip was decided, perhaps the epoch ended, while this was on its way.
        self._step(event)

    def _step(self, event: e.AgentEvent) -> None:
        for effect in self.machine.step(event):
            self._perform(effect)

    def _perform(self, effect: e.AgentEffect) -> None:
        match effect:
            case e.Reply(message):
                self._outbox.say(message)
            case e.SayHello(term):
                self._outbox.say(self._hello(term))
            case e.SayPulse():
                self._outbox.say(self._pulse())
            case e.Stand():
                self._outbox.say(self._stands())
            case e.Reserve():
                self._retire_past()
                self._stager.order(effect)
            case e.RunRounds() | e.Discard():
                self._stager.order(effect)
            case e.PlaceArm():
                self._place_arm(effect)
            case e.ResolveArm(_, verdict):
                assert self._arm is not None  # noqa: S101 - the machine resolves what it placed
                self._arm.resolve(verdict)
                self._arm = None
            case e.AskRegister() | e.PublishLeader() | e.SeekLeader():
                self._registrar.order(effect)

    def _place_arm(self, effect: e.PlaceArm) -> None:
        about, write = (effect.term, effect.epoch, effect.attempt), self._stager.write
        assert write is not None  # noqa: S101 - arms follow a reservation
        arm = Arm(*about, effect.at, effect.near, write)
        self._past = about
        if self.hook.place(arm):
            self._arm = arm
            self._step(e.ArmPlaced(*about))
        else:
            self._step(e.ArmMissed(*about, self.hook.forward))

    def _retire_past(self) -> None:
        """A new epoch is prepared, so the one before has ended on every rank: forget its keys."""
        if self._past is not None and self.identity.rank == 0:
            self._registrar.retire(*self._past)
        self._past = None

    # --- what it says ---------------------------------------------------------------------------

    def _post(self, frames: Sequence[bytes | memoryview]) -> bool:
        try:
            self._dealer.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _hello(self, term: int) -> m.Hello:
        placement, identity = self.machine.placement, self.identity
        return m.Hello(
            wire=m.WIRE_VERSION,
            wire_min=m.WIRE_VERSION_MIN,
            group=identity.group,
            incarnation=identity.incarnation,
            rank=identity.rank,
            ranks=placement.ranks,
            node=identity.node,
            layers=placement.layers,
            experts=placement.experts,
            slots_per_rank=placement.slots_per_rank,
            term=term,
            expert_bytes=self._executor.expert_bytes,
            layout_digest=self._executor.layout_digest,
            dispatch=identity.dispatch,
            counts=identity.counts,
            weighted=identity.weighted,
            leader=self.machine.contact.leader,
            leader_key=self.machine.contact.leader_key,
        )

    def _stands(self) -> m.Stands:
        machine, executor = self.machine, self._executor
        # A broken lane is spent: the next one must be newer.
        lane = executor.lane + 1 if executor.lane_broken else executor.lane
        return m.Stands(
            machine.term,
            machine.epoch,
            machine.placement.digest,
            machine.standing,
            machine.pending,
            self.hook.forward,
            lane,
            machine.placement.slots,
            None if machine.placement.shares is None else machine.placement.parts(),
        )

    def _pulse(self) -> m.Pulse:
        times = self.hook.times
        now = (
            times.forwards,
            times.forward_s,
            times.staging_forwards,
            times.staging_forward_s,
            times.gaps,
            times.gap_s,
        )
        new = [b - a for a, b in zip(self._pulsed, now, strict=True)]
        self._pulsed = now
        return m.Pulse(
            self.hook.forward,
            forward_s=_mean(new[1], new[0]),
            staging_forward_s=_mean(new[3], new[2]),
            gap_s=_mean(new[5], new[4]),
            lost_steps=self._lost_steps,
            masked=self.masked,
        )

    def _report_heat(self) -> None:
        for message in _reports(self._ring):
            if self.machine.connected:
                self._outbox.report(message)


def _mean(total: float, count: float) -> float:
    return max(0.0, total / count) if count else 0.0


def _reports(ring: HeatRing) -> Iterable[m.HeatReport]:
    """Everything that has arrived in the ring, cut where the phase changes."""
    for block in ring.drain():
        for phase, run in block.runs():
            yield m.HeatReport(
                epoch=run.epoch,
                first_forward=run.first_forward,
                phase=phase,
                counts=run.counts,
                routed=run.routed,
                tokens=run.tokens,
                dummy=run.dummy,
            )
