"""A cluster in one process: hosts with their daemons, ranks, engine, network and faults.

Owns what is connected to what. Must not know figures.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from eplbd.core import cluster as c
from eplbd.core import events as e
from eplbd.core.agent_events import Heard
from eplbd.core.group import Phase
from eplbd.core.placement import Placement
from eplbd.core.settings import Settings
from eplbd.offline.cluster.counters import Counters
from eplbd.offline.cluster.daemon import Daemon, Frames, Letter, Ways
from eplbd.offline.cluster.engine import Engine, Pace
from eplbd.offline.cluster.laws import BrokenLawError, demand
from eplbd.offline.cluster.loop import Loop
from eplbd.offline.cluster.network import Cut, Network, Quality
from eplbd.offline.cluster.nudge import Nudge
from eplbd.offline.cluster.rank import Member, Rank
from eplbd.offline.cluster.traffic import Traffic
from eplbd.offline.guests import Guest
from eplbd.runtime.bundles import Way
from eplbd.wire.messages import AGENT, LEADER

GROUP = "simulated"
POLL_S = 0.05
"""An agent thread's longest sleep, as in the worker."""

TOPK = 8

COPIES = 64
"""Frames of which a copy is kept: some of one node's bundle, and what all nodes have in common."""


@dataclass(frozen=True, slots=True)
class Restart:
    """At `at`, seconds, the daemon of `host` is killed; it starts again `down_s` later."""

    at: float
    host: int
    down_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is simulated. skew: share by which hosts' clocks run apart, beside any offset.

    policy_s: simulated seconds that the policy takes. tokens: of one rank in one forward.
    """

    ranks: int = 1024
    ranks_per_node: int = 8
    layers: int = 58
    slots: int = 9
    experts: int = 256
    forwards_per_s: float = 50.0
    tokens: int = 64
    quality: Quality = field(default_factory=Quality)
    cuts: tuple[Cut, ...] = ()
    restarts: tuple[Restart, ...] = ()
    skew: float = 1e-3
    seed: int = 0
    policy_s: float = 0.2
    settings: Settings = field(default_factory=Settings)
    busy: bool = False

    @property
    def hosts(self) -> int:
        """Number of nodes."""
        return -(-self.ranks // self.ranks_per_node)


class World:
    """One run. seen: takes every effect of every daemon, with its host and the newest forward."""

    def __init__(
        self,
        plan: Plan,
        policy: Guest | None = None,
        seen: Callable[[int, int, e.Effect], None] | None = None,
    ) -> None:
        self.plan, self._watch = plan, seen
        self.policy = policy or Guest(Nudge.name, Nudge)
        self.loop = Loop()
        self.random = Random(f"world {plan.seed}")  # noqa: S311  # no secret
        self.network = Network(self.loop, plan.quality, plan.cuts, plan.seed)
        placement = Placement.linear(plan.layers, plan.experts, plan.ranks, plan.slots)
        self.ranks = [Rank(self._member(rank), placement) for rank in range(plan.ranks)]
        self._peers = [f"r{rank}".encode() for rank in range(plan.ranks)]
        self._by_peer = {peer: rank for rank, peer in zip(self.ranks, self._peers, strict=True)}
        self._sent = [0] * plan.ranks
        self._clocks = [self._clock() for _ in range(plan.hosts)]
        self._kept: dict[str, e.Persist] = {}
        self._copies: OrderedDict[int, tuple[object, bytes]] = OrderedDict()
        """By what a frame is of, which lives as long as it is here."""
        self.daemons = [self._daemon(host) for host in range(plan.hosts)]
        self._host_of = {d.address.key.encode(): host for host, d in enumerate(self.daemons)}
        for daemon in self.daemons:
            daemon.start({})
        assignments = plan.ranks * plan.tokens * TOPK
        self.engine = Engine(
            self.loop,
            self.ranks,
            Traffic(plan.layers, plan.experts, assignments, plan.seed),
            Counters(placement, plan.tokens),
            Pace(1 / plan.forwards_per_s, 3 * plan.quality.latency_s),
            self._speak,
        )
        for rank in self.ranks:
            self.loop.after(POLL_S * self.random.random(), partial(self._poll, rank))
        for restart in plan.restarts:
            self._arrange(restart)

    def _member(self, rank: int) -> Member:
        plan = self.plan
        node = f"node{rank // plan.ranks_per_node}"
        return Member(GROUP, "1", rank, node, forward_s=1 / plan.forwards_per_s)

    def _clock(self) -> Callable[[float], float]:
        """A host's monotonic clock: it began some other day, and runs a little fast or slow."""
        offset = self.random.uniform(0, 1e6)
        rate = 1 + self.random.uniform(-self.plan.skew, self.plan.skew)
        return lambda now: offset + rate * now

    def _daemon(self, host: int) -> Daemon:
        address = c.Address(f"tcp://node{host}:7780", f"{host:040}")
        ways = Ways(self._to_rank, partial(self._to_node, host), partial(self._seen, host))
        settings, clock = self.plan.settings, self._clocks[host]
        busy = self.plan.busy and host == 0
        return Daemon(self.loop, settings, address, ways, clock, busy=busy)

    def host(self, rank: int) -> int:
        """Where a rank is."""
        return rank // self.plan.ranks_per_node

    # --- ranks ----------------------------------------------------------------------------------

    def _poll(self, rank: Rank) -> None:
        """The agent thread wakes."""
        self.loop.after(POLL_S, partial(self._poll, rank))
        rank.step(e.Tick(self._clocks[self.host(rank.rank)](self.loop.now)))
        while rank.heat:
            report = rank.heat.popleft()
            if rank.agent.connected:
                rank.outbox.append(report)
        self.engine.settle(rank)

    def _speak(self, rank: Rank) -> None:
        """Send what a rank has to say to its daemon."""
        number, host = rank.rank, self.host(rank.rank)
        while rank.outbox:
            self._sent[number] += 1
            frames = AGENT.encode(rank.outbox.popleft(), self._sent[number])
            letter = Letter(self._peers[number], frames)
            self.network.send(host, host, partial(self.daemons[host].arrived, letter))

    def _to_rank(self, peer: bytes, frames: Frames) -> None:
        rank = self._by_peer[peer]
        host = self.host(rank.rank)
        self.network.send(host, host, partial(self._hear, rank, frames))

    def _to_node(self, host: int, way: Way, key: bytes, frames: Frames) -> bool:
        """Send a bundle; false if nobody listens there."""
        sender, target = self.daemons[host].address, self._host_of[key]
        if self.daemons[target].node is None:
            return False
        leader = sender if way is Way.DOWN else None
        copied = [self._copied(frame) for frame in frames]
        letter = Letter(sender.key.encode(), copied, leader, local=False)
        self.network.send(host, target, partial(self.daemons[target].arrived, letter))
        return True

    def _copied(self, frame: bytes | memoryview) -> bytes:
        """A frame as it arrives: of what goes to many nodes in one turn there is one copy."""
        if not isinstance(frame, memoryview):
            return frame
        key = id(frame.obj)
        if key not in self._copies:
            self._copies[key] = frame.obj, bytes(frame)
        self._copies.move_to_end(key)
        if len(self._copies) > COPIES:
            self._copies.popitem(last=False)
        return self._copies[key][1]

    def _hear(self, rank: Rank, frames: Frames) -> None:
        _, message = LEADER.decode(frames)
        rank.step(Heard(message))
        self.engine.settle(rank)

    # --- daemons --------------------------------------------------------------------------------

    def _seen(self, host: int, effect: e.Effect) -> None:
        match effect:
            case e.AskPolicy():
                self._ask(host, effect)
            case e.Persist(group):
                self._kept[group] = effect
            case _:
                pass
        if self._watch is not None:
            self._watch(host, self.engine.forward, effect)

    def _ask(self, host: int, ask: e.AskPolicy) -> None:
        answer = self.policy.ask(ask.heat, ask.topology, ask.current, ask.budget)
        demand(not answer.failure, f"policy {self.policy.name}: {answer.failure}")
        placed = answer.placement
        told = e.PolicyAnswered(ask.request, placed.slots, self.plan.policy_s, placed.shares)
        self.loop.after(self.plan.policy_s, partial(self.daemons[host].take, told))

    def _arrange(self, restart: Restart) -> None:
        daemon = self.daemons[restart.host]
        kept = self._kept if restart.host == 0 else {}
        self.loop.at(restart.at, daemon.stop)
        self.loop.at(restart.at + restart.down_s, lambda: daemon.start(kept))

    # --- time and laws ----------------------------------------------------------------------------

    @property
    def leader(self) -> Daemon:
        """The daemon of rank 0's host."""
        return self.daemons[0]

    def run(self, seconds: float) -> None:
        """Let simulated time pass."""
        self.loop.run(self.loop.now + seconds)

    def rest(self, most_s: float = 60.0) -> None:
        """Let time pass until no epoch is under way, a minute at most."""
        until = self.loop.now + most_s
        while self.loop.now < until:
            self.run(0.1)
            node = self.leader.node
            led = node.balancers.get(GROUP) if node is not None else None
            if led is not None and led.group.phase is Phase.READY and led.group.leader is None:
                return

    def hold_to_laws(self) -> None:
        """Demand what must hold while no epoch is under way and nothing was wrong for a while."""
        digests = {rank.agent.placement.digest for rank in self.ranks}
        demand(len(digests) == 1, f"ranks hold maps {sorted(digests)}")
        node = self.leader.node
        if node is None or GROUP not in node.balancers:
            raise BrokenLawError("nobody leads")
        balancer = node.balancers[GROUP]
        demand(balancer.group.phase is Phase.READY, f"the group is {balancer.group.phase}")
        held = balancer.group.placement
        demand(
            held is not None and {held.digest} == digests,
            f"the leader takes {held and held.digest} to be in force, the ranks hold {digests}",
        )
        books = balancer.ledger.statistics() if balancer.ledger else None
        demand(books is not None and not books.mismatches, f"books of heat: {books}")
