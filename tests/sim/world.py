"""A group, its leader and everything between them, stepped by a schedule.

The leader is the real `Node`, the agents are real `Agent`s; network, register, transport, policy
and clock are plain queues here. After every step the world asserts what must never be false:

- ranks that run the same forward use the same map;
- a slot holds the bytes of the expert that the map routes to it;
- a rank never waits for a peer that walked away from a round which both had begun.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from eplbd.core import messages as m
from eplbd.core.events import (
    AskPolicy,
    CycleEnded,
    Effect,
    EpochEnded,
    Event,
    Note,
    Persist,
    PolicyAnswered,
    Received,
    Restored,
    Send,
    Tick,
)
from eplbd.core.node import Node
from eplbd.core.placement import Placement
from eplbd.offline.cluster.engine import Store
from tests.sim.quick import PATIENT, QUICK, TICK_S, Shape
from tests.sim.rank import SimRank
from tests.sim.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from eplbd.core.settings import Settings

__all__ = ["PATIENT", "QUICK", "TICK_S", "Shape", "World"]


@dataclass
class World:
    """The simulation. `random` decides everything that the schedule leaves open."""

    shape: Shape = field(default_factory=Shape)
    settings: Settings = QUICK
    seed: int = 0
    weighted: bool = False
    """Whether the ranks take shares, and the policy gives some."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now = 0.0
        self.used: dict[int, str] = {}
        self.echo_until = 0.0
        self.dies_at: type[m.FromLeader] | None = None
        self.limbo: list[tuple[float, deque[Any], Any]] = []
        self.log: list[Effect] = []
        self.counts: Counter[str] = Counter()
        self.stored: dict[str, Persist] = {}
        self.lives = self.daemons = 0
        self.terms: dict[tuple[int, int], int] = {}
        self.restart_group()
        self.node: Node | None = None
        self.start_daemon()

    # --- lives and deaths -----------------------------------------------------------------------

    def restart_group(self) -> None:
        """Start all ranks anew, on the engine's initial layout."""
        self.lives += 1
        shape = self.shape
        initial = Placement.linear(shape.layers, shape.experts, shape.ranks, shape.slots_per_rank)
        self.ranks = [
            SimRank(rank, initial, f"{self.lives:04}", weighted=self.weighted)
            for rank in range(shape.ranks)
        ]
        self.up: list[deque[tuple[int, m.FromAgent]]] = [deque() for _ in self.ranks]
        self.down: list[deque[Any]] = [deque() for _ in self.ranks]
        self.sent = [0] * shape.ranks
        self.transport = Transport(self.ranks)
        self.store = Store()
        self.used.clear()

    def start_daemon(self, *, stale: bool = False) -> None:
        """Start a daemon with the stored state, or with none or an old one."""
        self.node = self.new_node()
        self.daemons += 1
        self.proposals: deque[AskPolicy] = deque()
        self.feed(Tick(self.now))
        for name, kept in self.stored.items():
            if stale:
                self.feed(Restored(name, 0, 0))
            else:
                known = kept.term, kept.epoch, kept.placement, kept.likeness
                self.feed(Restored(name, *known))

    def new_node(self) -> Node:
        """Make the machine of a daemon that starts."""
        return Node(self.settings)

    def kill_daemon(self) -> None:
        """SIGKILL: what was on the way to it is gone; what it had sent may arrive, and late."""
        self.node = None
        self.cut_off(self.up, self.down)

    def cut_off(self, up: list[deque[Any]], down: list[deque[Any]]) -> None:
        """A process died: what was on the way to it is gone, what is from it may be late."""
        if self.random.random() < 0.5:
            for queue in down:
                due = self.now + self.random.uniform(0.1, 3.0)
                self.limbo += [(due, queue, message) for message in queue]
                queue.clear()
        for queue in up:
            queue.clear()
        self.limbo = [held for held in self.limbo if not any(held[1] is gone for gone in up)]

    # --- the daemon's shell ---------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Give the daemon an event and perform its effects."""
        if self.node is None:
            return
        for effect in self.node.step(event):
            self.perform(effect)
            if self._dies_of(effect):
                self.kill_daemon()
                return
        self.node.check()

    def _dies_of(self, effect: Effect) -> bool:
        """Whether this is where the daemon is to be killed, with half of its orders given."""
        if not isinstance(effect, Send) or type(effect.message) is not self.dies_at:
            return False
        if self.random.random() < 0.5:
            self.dies_at = None
            return True
        return False

    def perform(self, effect: Effect) -> None:
        """Do what the daemon's shell would do."""
        match effect:
            case Send(bytes() as peer, message):
                self._check_term(message)
                rank = int(peer.split(b".")[0])
                if peer == self.peer(rank):
                    self.down[rank].append(message)
                    if self.now < self.echo_until:
                        due = self.now + self.random.uniform(0.05, 1.0)
                        self.limbo.append((due, self.down[rank], message))
            case AskPolicy():
                self.proposals.append(effect)
            case Persist(group):
                self.stored[group] = effect
            case EpochEnded() | CycleEnded() | Note():
                self.log.append(effect)
            case _:
                pass

    def _check_term(self, message: m.FromLeader) -> None:
        """No two daemons give orders under one term; a mere claim may die and be repeated."""
        if isinstance(message, m.Prepare):
            leader = self.terms.setdefault((self.lives, message.term), self.daemons)
            assert leader == self.daemons, f"term {message.term} was led under before"

    def peer(self, rank: int) -> bytes:
        """Return the transport's identity of a rank."""
        return f"{rank}.{self.lives}".encode()

    def answer_policy(self) -> None:
        """Propose any valid placement: what is proposed is not the protocol's concern."""
        ask = self.proposals.popleft()
        rows = ask.current.slots.copy()
        for layer in range(self.shape.layers):
            if not self.weighted or self.random.random() < 0.5:
                rows[layer] = self.shuffled()
        shares = self.uneven(rows) if self.weighted and self.random.random() < 0.8 else None
        self.feed(PolicyAnswered(ask.request, rows, 0.01, shares))

    def uneven(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Any valid shares of `rows`."""
        weights = self.random.choices(range(1, 1000), k=rows.size)
        shares = np.array(weights, dtype=np.float32).reshape(rows.shape)
        for layer, expert in np.ndindex(len(rows), self.shape.experts):
            own = rows[layer] == expert
            shares[layer][own] /= shares[layer][own].sum()
        return shares

    def shuffled(self) -> NDArray[np.int32]:
        """One layer in which every expert is placed and no rank holds one twice."""
        shape = self.shape
        while True:
            spare = shape.ranks * shape.slots_per_rank - shape.experts
            bag = [*range(shape.experts), *self.random.choices(range(shape.experts), k=spare)]
            self.random.shuffle(bag)
            row = np.array(bag, dtype=np.int32).reshape(shape.ranks, shape.slots_per_rank)
            if all(len(set(held)) == len(held) for held in row.tolist()):
                return row

    # --- network --------------------------------------------------------------------------------

    def daemon_of(self, rank: int) -> Node | None:
        """Return the daemon that serves a rank."""
        return self.node if rank < len(self.ranks) else None

    def collect(self, rank: int) -> None:
        """Put what a rank said on the wire; without a daemon it goes nowhere."""
        for message in self.ranks[rank].outbox:
            self.sent[rank] += 1
            if self.daemon_of(rank) is not None:
                self.up[rank].append((self.sent[rank], message))
        self.ranks[rank].outbox.clear()

    def deliver_up(self, rank: int) -> None:
        """The oldest message of a rank reaches the daemon."""
        seq, message = self.up[rank].popleft()
        self.feed(Received(self.peer(rank), seq, message))

    def deliver_down(self, rank: int) -> None:
        """The oldest message to a rank reaches it."""
        self.ranks[rank].heard(self.down[rank].popleft())

    def disturb(self, rank: int, what: str, *, upward: bool) -> None:
        """Drop, repeat, reorder or hold back on one of a rank's two ways."""
        self.disturb_queue(self.up[rank] if upward else self.down[rank], what)

    def disturb_queue(self, queue: deque[Any], what: str) -> None:
        """Do it to the messages that are on one way."""
        if not queue:
            return
        match what:
            case "drop":
                queue.popleft()
            case "repeat":
                queue.append(queue[0])
            case "delay":
                # Also past the death of its sender: the queues of a transport outlive a process.
                self.limbo.append((self.now + self.random.uniform(0.1, 3.0), queue, queue[0]))
                if self.random.random() < 0.5:
                    queue.popleft()
            case _:
                queue.rotate(1)

    # --- register ---------------------------------------------------------------------------------

    def run_registrar(self, rank: int) -> None:
        """Let a rank ask the register."""
        me = self.ranks[rank]
        self.store.answer(me, me.questions.popleft())

    def echo(self, seconds: float) -> None:
        """Everything said to any rank from now on, for a while, is said again later."""
        self.echo_until = self.now + seconds

    def hold_register(self, rank: int) -> None:
        """The next answers to a rank wait until the world settles or time has passed."""
        self.ranks[rank].register_held_until = self.now + 1.0

    # --- clock ----------------------------------------------------------------------------------

    def may_forward(self, rank: int) -> bool:
        """Forwards are collective: no rank is more than one ahead."""
        me = self.ranks[rank]
        return not me.blocked and me.forward == min(r.forward for r in self.ranks)

    def run_forward(self, rank: int) -> None:
        """Run one forward of a rank and hold it against the others'."""
        me = self.ranks[rank]
        me.run_forward()
        digest = me.map.digest
        first = self.used.setdefault(me.forward, digest)
        assert first == digest, f"forward {me.forward}: rank {rank} uses {digest}, others {first}"
        me.check_contents()
        self.counts["forwards"] += 1
        if me.forward % 2 == 0 and me.agent.connected:
            self._report_heat(me)

    def heat(self) -> NDArray[np.int32]:
        """Tokens of every expert in one forward, `[experts]`."""
        return 1 + np.arange(self.shape.experts, dtype=np.int32) * 3

    def _report_heat(self, me: SimRank) -> None:
        """Report the two newest forwards, if both were run under the map in force."""
        digest = me.map.digest
        if self.used.get(me.forward - 1) != digest or me.agent.placement.digest != digest:
            return
        held = me.map.slots[:, me.rank]
        split = self.heat() // np.maximum(me.map.replicas(), 1)
        counts = np.stack([np.take_along_axis(split, held, axis=1)] * 2).astype(np.int32)
        me.outbox.append(
            m.HeatReport(
                epoch=me.agent.epoch,
                first_forward=me.forward - 1,
                phase="decode",
                counts=counts,
                routed=counts.sum(axis=(1, 2), dtype=np.int64),
                tokens=np.full(2, 8, dtype=np.int32),
                dummy=np.zeros(2, dtype=np.bool_),
            )
        )

    def tick(self) -> None:
        """Time goes on everywhere."""
        self.now += TICK_S
        for due, queue, message in [held for held in self.limbo if held[0] <= self.now]:
            self.limbo.remove((due, queue, message))
            queue.append(message)
        self.feed(Tick(self.now))
        for me in self.ranks:
            if not me.stopped:
                me.tick(self.now)

    # --- schedules ------------------------------------------------------------------------------

    def actions(self) -> list[Callable[[], None]]:
        """Everything that could happen now without a fault."""
        doable: list[Callable[[], None]] = [self.tick]
        if self.proposals and self.node:
            doable.append(self.answer_policy)
        for rank, me in enumerate(self.ranks):
            self.collect(rank)
            if self.up[rank] and self.daemon_of(rank):
                doable.append(partial(self.deliver_up, rank))
            if me.stopped:
                continue
            if self.down[rank]:
                doable.append(partial(self.deliver_down, rank))
            if me.stager:
                doable.append(partial(self.transport.run, rank))
            if me.questions and self.now >= me.register_held_until:
                doable.append(partial(self.run_registrar, rank))
            if self.may_forward(rank):
                doable.append(partial(self.run_forward, rank))
        return doable

    def run(self, steps: int) -> None:
        """Do `steps` random things."""
        for _ in range(steps):
            self.random.choice(self.actions())()

    def settle(self, limit: int = 4000) -> None:
        """Without further faults: the group must become ready and settle another epoch."""
        for me in self.ranks:
            me.stopped = False
        self.dies_at = None
        if self.node is None:
            self.start_daemon()
        before = self.settled
        for _ in range(limit):
            self.run(20)
            if self.settled > before:
                return
        raise AssertionError(f"nothing settled any more: {self.story()}")

    @property
    def settled(self) -> int:
        """Epochs settled so far, over all daemons."""
        return sum(isinstance(e, EpochEnded) and e.outcome == "settled" for e in self.log)

    @property
    def aborted(self) -> int:
        """Epochs aborted so far, over all daemons."""
        return sum(isinstance(e, EpochEnded) and e.outcome == "aborted" for e in self.log)

    def midway(self, left: int = 20) -> bool:
        """Whether an epoch is under way, and more than `left` moves of its plan are not settled."""
        balancer = self.node.balancers["sim"] if self.node is not None else None
        if balancer is None or balancer.group.leader is None or balancer.cycle is None:
            return False
        plan = balancer.cycle.plan
        return plan is not None and plan.remaining > left

    def story(self) -> str:
        """Where all stand, and what was logged last."""
        ranks = [
            (r.agent.standing, r.agent.term, r.agent.epoch, r.agent.pending, r.forward)
            for r in self.ranks
        ]
        return f"{ranks}\n" + "\n".join(map(repr, self.log[-20:]))
