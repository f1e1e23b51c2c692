"""The two threads that may wait: one stages weights, one asks the decision register.

Each takes orders from a queue and answers with an event. They must not know the protocol. Nothing
they wait for can hold up the forward thread or the agent thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Protocol, TypeAlias

from eplbd.core.agent_events import (
    AgentEvent,
    AskRegister,
    Discard,
    LeaderFound,
    PublishLeader,
    RegisterAnswered,
    RegisterFailed,
    Reserve,
    Reserved,
    ReserveFailed,
    RoundsDone,
    RoundsFailed,
    RunRounds,
    SeekLeader,
)
from eplbd.core.messages import Gate, Prepare
from eplbd.errors import TransferError
from eplbd.worker.executor import Executor, RankWork
from eplbd.worker.hook import ForwardHook
from eplbd.worker.register import DecisionRegister, RegisterError

log = logging.getLogger("eplbd.worker")

IDLE_S = 0.02
"""With no forward for this long there is nothing to disturb: the next round need not wait."""

LONGEST_FORWARD_S = 1.0
"""A forward that lasts longer is not waited for: a peer may already wait for the round's bytes."""


class Engine(Protocol):
    """What an adapter does with finished maps."""

    def stage_maps(self, prepare: Prepare) -> Callable[[], None]:
        """Bring the maps of an epoch to the device; return what puts them in force.

        Called on the stager thread. What it returns is called once, on the forward thread, and must
        write in place and in stream order, without a host sync. `prepare.parts` is None unless the
        engine said `weighted`: replicas then take even parts. Raises TransferError for maps that
        the engine has no room for.
        """
        ...


class Stager:
    """Reserves, stages and discards, in the order asked for."""

    def __init__(
        self,
        rank: int,
        executor: Executor,
        engine: Engine,
        hook: ForwardHook,
        tell: Callable[[AgentEvent], None],
    ) -> None:
        self._rank, self._executor, self._engine = rank, executor, engine
        self._hook, self._tell = hook, tell
        self._orders: queue.SimpleQueue[Reserve | RunRounds | Discard | None] = queue.SimpleQueue()
        self._rounds = 0
        self.write: Callable[[], None] | None = None
        """Puts the reserved epoch's maps in force; for the forward thread."""
        self.thread = threading.Thread(target=self._run, name="eplbd-stager", daemon=True)

    def order(self, effect: Reserve | RunRounds | Discard) -> None:
        """Ask for something; the answer comes as an event."""
        self._orders.put(effect)

    def stop(self) -> None:
        """Let the thread end after what it does."""
        self._orders.put(None)

    def _run(self) -> None:
        while (effect := self._orders.get()) is not None:
            match effect:
                case Reserve(prepare):
                    self._tell(self._reserve(prepare))
                case RunRounds():
                    self._tell(self._run_rounds(effect))
                case Discard():
                    self.write = None
                    self._executor.discard()

    def _reserve(self, prepare: Prepare) -> AgentEvent:
        executor, key = self._executor, (prepare.term, prepare.epoch)
        try:
            executor.discard()
            if executor.lane < prepare.lane:
                executor.renew(prepare.lane)
            if executor.lane_broken:
                return ReserveFailed(*key, f"lane {executor.lane} is broken", lane_broken=True)
            self.write = self._engine.stage_maps(prepare)
            executor.reserve(RankWork(self._rank, prepare.rounds, prepare.transfers))
        except Exception as error:  # noqa: BLE001 - the adapter's code: whatever it is, no epoch
            return ReserveFailed(*key, _sentence(error), executor.lane_broken)
        self._rounds = prepare.rounds
        return Reserved(*key)

    def _run_rounds(self, effect: RunRounds) -> AgentEvent:
        """Carry every round through, also after a failure: a peer may wait for its bytes."""
        key = effect.term, effect.epoch
        before = self._executor.statistics().bytes_received
        began, transfer_s = perf_counter(), 0.0
        failed = ""
        self._hook.staging = True
        try:
            for index in range(self._rounds):
                self._await_bubble(effect.stride)
                round_began = perf_counter()
                outcome = self._round(index)
                transfer_s += perf_counter() - round_began
                failed = failed or outcome
            if not failed:
                self._executor.verify()
        except (TransferError, RuntimeError) as error:
            failed = _sentence(error)
        finally:
            self._hook.staging = False
        if failed:
            log.warning("epoch %d not staged: %s", effect.epoch, failed)
            return RoundsFailed(*key, failed, self._executor.lane_broken)
        received = self._executor.statistics().bytes_received - before
        stage_s = perf_counter() - began
        return RoundsDone(*key, self._hook.forward, stage_s, received, transfer_s)

    def _round(self, index: int) -> str:
        try:
            self._executor.stage(index)
        except (TransferError, RuntimeError) as error:
            return _sentence(error)
        return ""

    def _await_bubble(self, stride: int) -> None:
        """Let `stride` forwards pass, if any come: a round begins where a forward ended."""
        hook = self._hook
        for _ in range(stride):
            hook.bubble.clear()
            if hook.bubble.wait(IDLE_S):
                continue
            if not hook.under_way or not hook.bubble.wait(LONGEST_FORWARD_S):
                return


_Order: TypeAlias = AskRegister | PublishLeader | SeekLeader | tuple[int, int, int] | str


class Registrar:
    """Asks the register, one question after the other."""

    def __init__(
        self,
        group: str,
        register: DecisionRegister,
        tell: Callable[[AgentEvent], None],
        *,
        incarnation: str,
        node: str,
        deadline_s: float,
    ) -> None:
        self._group, self._register, self._tell = group, register, tell
        # The store may outlive the group's life, and where that was led says nothing of this one.
        self._leader_name = f"eplbd/{group}/leader/{incarnation}"
        self._refusals = f"eplbd/{group}/refused/{incarnation}/{node}"
        self._refused = ""
        self._deadline_s = deadline_s
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._published = ""
        self.thread = threading.Thread(target=self._run, name="eplbd-registrar", daemon=True)

    def order(self, effect: AskRegister | PublishLeader | SeekLeader) -> None:
        """Ask or tell; the answer comes as an event."""
        self._orders.put(effect)

    def retire(self, term: int, epoch: int, attempts: int) -> None:
        """Remove the keys of an epoch that has ended on every rank."""
        self._orders.put((term, epoch, attempts))

    def refused(self, reason: str) -> None:
        """Log why the node's daemon refuses this rank, unless another rank of the node has."""
        self._orders.put(reason)

    def stop(self) -> None:
        """Let the thread end after what it does."""
        self._orders.put(None)

    def key(self, term: int, epoch: int, gate: Gate, attempt: int) -> str:
        """Return the register's key of a decision."""
        return f"eplbd/{self._group}/{term}/{epoch}/{gate}/{attempt}"

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            match order:
                case AskRegister():
                    self._tell(self._ask(order))
                case PublishLeader(endpoint, key):
                    self._publish(f"{endpoint} {key}")
                case SeekLeader():
                    self._seek()
                case str():
                    self._say(order)
                case _:
                    self._retire(*order)

    def _ask(self, ask: AskRegister) -> AgentEvent:
        about = ask.term, ask.epoch, ask.gate, ask.attempt
        try:
            verdict = self._register.decide(
                self.key(*about), ask.proposal, deadline_s=self._deadline_s
            )
        except RegisterError as error:
            return RegisterFailed(*about, str(error))
        return RegisterAnswered(*about, verdict)

    def _publish(self, leader: str) -> None:
        if leader == self._published:
            return
        try:
            self._register.publish(self._leader_name, leader, deadline_s=self._deadline_s)
        except RegisterError as error:
            # The daemon says it again while ranks are missing.
            log.warning("other nodes cannot be told where the leader is: %s", error)
        else:
            self._published = leader

    def _seek(self) -> None:
        try:
            found = self._register.look(self._leader_name, deadline_s=self._deadline_s)
        except RegisterError:
            return  # The agent asks again, for as long as it is alone.
        endpoint, _, key = found.partition(" ")
        self._tell(LeaderFound(endpoint, key))

    def _say(self, refusal: str) -> None:
        if refusal == self._refused:
            return  # The daemon says it again with every knock.
        self._refused = refusal
        try:
            first = self._register.claim(f"{self._refusals}/{refusal}", deadline_s=self._deadline_s)
        except RegisterError:
            first = True  # Rather twice than not at all.
        if first:
            log.error("eplbd refuses this worker: %s", refusal)

    def _retire(self, term: int, epoch: int, attempts: int) -> None:
        keys = [self.key(term, epoch, Gate.STAGE, 0)]
        keys += [self.key(term, epoch, Gate.FLIP, attempt) for attempt in range(1, attempts + 1)]
        for key in keys:
            try:
                self._register.forget(key, deadline_s=self._deadline_s)
            except RegisterError:
                # A hundred bytes stay in the store; nobody will read them.
                return


def _sentence(error: Exception) -> str:
    """One line for a `Nack`; the text of a device error may be many."""
    return " ".join(str(error).split())[:500] or type(error).__name__
