"""Workers for a real daemon: the agent machine on a real socket, and an engine made of counters.

What an engine's threads do at their own pace is done at once here: buffers are there, rounds
succeed, the register is a dict that all workers share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core import agent_events as a
from eplbd.core import messages as m
from eplbd.core.agent import Agent
from eplbd.core.events import Tick
from eplbd.core.messages import Verdict
from eplbd.core.placement import Placement
from eplbd.wire.messages import AGENT, LEADER
from tests.runtime.conftest import PATIENCE_S, Connect

if TYPE_CHECKING:
    import zmq

PLACEMENT = Placement.linear(2, 4, 2, 3)
Register = dict[tuple[object, ...], Verdict]
Store = dict[str, tuple[str, str]]


class Worker:
    """One rank of a group, by default of two."""

    def __init__(
        self,
        rank: int,
        connect: Connect,
        register: Register,
        incarnation: str,
        initial: Placement = PLACEMENT,
    ) -> None:
        self.agent = Agent(rank, initial)
        self.socket: zmq.Socket[bytes] = connect(f"r{rank}.{incarnation}".encode())
        self.register, self.incarnation = register, incarnation
        self.forward = self.seq = 0
        self.arm: a.PlaceArm | None = None
        self.heard: list[m.FromLeader] = []
        self.weighted = False
        """Whether the engine takes shares."""
        self.idle = False
        """Whether the engine makes no forward: what is to flip at one does not."""
        self.node = "here"
        self.store: Store = {}
        """Where the group's ranks leave word for each other: one for all, where that matters."""
        self.hot = 2
        """The expert that gets a hundred times as many tokens as any other."""

    def turn(self) -> None:
        """One forward, with everything that has arrived by then."""
        self.forward += 1
        self.step(Tick(time.monotonic()))
        while self.socket.poll(0):
            _, message = LEADER.decode(self.socket.recv_multipart())
            self.heard.append(message)
            self.step(a.Heard(message))

    def step(self, event: a.AgentEvent) -> None:
        for effect in self.agent.step(event):
            self.perform(effect)

    def perform(self, effect: a.AgentEffect) -> None:
        match effect:
            case a.Reply(message):
                self.say(message)
            case a.SayHello(term):
                self.say(self.hello(term))
            case a.SayPulse():
                self.say(m.Pulse(self.forward))
            case a.Stand():
                self.say(self.stands())
            case a.Reserve(prepare):
                self.step(a.Reserved(prepare.term, prepare.epoch))
            case a.RunRounds(term, epoch):
                done = a.RoundsDone(term, epoch, self.forward, stage_s=0.02, transfer_s=0.005)
                self.step(done)
            case a.PlaceArm(term, epoch, attempt):
                self.arm = effect
                self.step(a.ArmPlaced(term, epoch, attempt))
            case a.AskRegister(term, epoch, gate, attempt, proposal):
                verdict = self.register.setdefault((term, epoch, gate, attempt), proposal)
                self.step(a.RegisterAnswered(term, epoch, gate, attempt, verdict))
            case a.ResolveArm(_, verdict):
                assert self.arm is not None
                if verdict is Verdict.COMMIT and not self.idle:
                    self.step(a.Flipped(self.arm.term, self.arm.epoch, self.arm.at))
            case a.PublishLeader() | a.SeekLeader() | a.Discard():
                self.leave_word(effect)

    def leave_word(self, effect: a.PublishLeader | a.SeekLeader | a.Discard) -> None:
        if isinstance(effect, a.PublishLeader):
            self.store["leader"] = (effect.endpoint, effect.key)
        elif isinstance(effect, a.SeekLeader):
            self.step(a.LeaderFound(*self.store.get("leader", ("", ""))))

    def say(self, message: m.FromAgent) -> None:
        self.seq += 1
        self.socket.send_multipart(AGENT.encode(message, self.seq))

    def hello(self, term: int) -> m.Hello:
        initial = self.agent.placement
        return m.Hello(
            wire=m.WIRE_VERSION,
            wire_min=m.WIRE_VERSION_MIN,
            group="default",
            incarnation=self.incarnation,
            rank=self.agent.rank,
            ranks=initial.ranks,
            node=self.node,
            layers=initial.layers,
            experts=initial.experts,
            slots_per_rank=initial.slots_per_rank,
            term=term,
            expert_bytes=1_000,
            layout_digest="0" * 16,
            weighted=self.weighted,
            leader=self.agent.contact.leader,
            leader_key=self.agent.contact.leader_key,
        )

    def stands(self) -> m.Stands:
        agent, placement = self.agent, self.agent.placement
        return m.Stands(
            agent.term,
            agent.epoch,
            placement.digest,
            agent.standing,
            agent.pending,
            self.forward,
            0,
            placement.slots,
            None if placement.shares is None else placement.parts(),
        )

    def heat(self, steps: int = 16) -> m.HeatReport:
        """One expert is a hundred times as hot as any other; its replicas share evenly."""
        tokens = np.full(4, 10)
        tokens[self.hot] = 1_000
        slots = self.agent.placement.slots
        shares = np.stack([tokens // np.bincount(layer.ravel(), minlength=4) for layer in slots])
        mine = np.take_along_axis(shares, slots[:, self.agent.rank].astype(np.int64), axis=1)
        counts = np.broadcast_to(mine.astype(np.int32), (steps, *mine.shape))
        return m.HeatReport(
            epoch=self.agent.epoch,
            first_forward=self.forward,
            phase="decode",
            counts=counts,
            routed=np.full(steps, mine.sum(), np.int64),
            tokens=np.full(steps, 100, np.int32),
            dummy=np.zeros(steps, bool),
        )


def group(connect: Connect, incarnation: str = "1") -> list[Worker]:
    """Both ranks of a fresh group."""
    register: Register = {}
    return [Worker(rank, connect, register, incarnation) for rank in range(PLACEMENT.ranks)]


def drive(
    workers: Sequence[Worker], happened: Callable[[], bool], what: str | Callable[[], str]
) -> None:
    """Turn the workers until it `happened`; fail with `what`, as it is then, if it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen: {what if isinstance(what, str) else what()}")
        for worker in workers:
            worker.turn()
        time.sleep(0.002)


def welcomed(workers: Sequence[Worker]) -> bool:
    """Whether every worker has a session."""
    return all(worker.agent.connected for worker in workers)
