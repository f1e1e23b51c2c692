"""The engine around the ranks: forwards, stagers, the decision register, heat.

Owns when a rank's own threads act, and the laws of serving: all ranks run a forward under one map,
and none waits for anything but the register. Must not know daemons nor their network: the engine's
own connects its ranks, or nothing is served.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from eplbd.core import agent_events as e
from eplbd.core.messages import Verdict
from eplbd.offline.cluster.counters import Counters
from eplbd.offline.cluster.laws import demand
from eplbd.offline.cluster.transport import Transport

if TYPE_CHECKING:
    from eplbd.core.agent import Agent
    from eplbd.core.placement import Placement
    from eplbd.offline.cluster.loop import Loop
    from eplbd.offline.cluster.rank import Question, Rank
    from eplbd.offline.cluster.traffic import Traffic

RESERVE_S = 1e-3
"""To claim staging buffers, or let them go."""

POLL_S = 2e-4
"""How often a forward looks that waits for a verdict."""


@dataclass(frozen=True, slots=True)
class Pace:
    """forward_s: from forward to forward. register_s: for one answer of the decision register.

    A round of transfers takes `stride` forwards, as the leader says, and verifying one more.
    """

    forward_s: float
    register_s: float

    @property
    def wait_s(self) -> float:
        """Longest that a forward may wait: for one answer, and for being told."""
        return self.register_s + 2 * POLL_S


@dataclass
class Store:
    """The group's store: write-once verdicts, and where the leader is. Lives as long as it does."""

    verdicts: dict[tuple[object, ...], Verdict] = field(default_factory=dict)
    leader: e.LeaderFound = field(default_factory=lambda: e.LeaderFound("", ""))

    def answer(self, rank: Rank, question: Question) -> None:
        """Answer a rank: the first writer of a verdict decides for all."""
        match question:
            case e.AskRegister(term, epoch, gate, attempt, proposal):
                about = term, epoch, gate, attempt
                verdict = self.verdicts.setdefault(about, proposal)
                rank.step(e.RegisterAnswered(*about, verdict))
            case e.PublishLeader(endpoint, key):
                self.leader = e.LeaderFound(endpoint, key)
            case e.SeekLeader():
                rank.step(self.leader)


class Engine:
    """All ranks of the group. speak: takes what a rank has in its outbox."""

    def __init__(
        self,
        loop: Loop,
        ranks: Sequence[Rank],
        traffic: Traffic,
        counters: Counters,
        pace: Pace,
        speak: Callable[[Rank], None],
    ) -> None:
        self._loop, self._ranks, self._pace, self._speak = loop, ranks, pace, speak
        self._traffic, self._counters = traffic, counters
        self._transport = Transport(ranks)
        self._store = Store()
        self._busy: set[int] = set()
        """Ranks whose stager has begun what it does, transfers aside."""
        self._begun: dict[int, int] = {}
        """Forward at which each rank began its rounds."""
        self._known: OrderedDict[str, Placement] = OrderedDict()
        self._waits_since: float | None = None
        self.forward = 0
        self.map = ranks[0].map
        self.longest_wait_s = 0.0
        loop.after(pace.forward_s, self._run_forward)

    def settle(self, rank: Rank) -> None:
        """Let a rank's other threads take up what its agent thread has just ordered."""
        self._share(rank.agent)
        while rank.questions:
            question = rank.questions.popleft()
            self._loop.after(self._pace.register_s, partial(self._answer, rank, question))
        self._stage(rank)
        if rank.outbox:
            self._speak(rank)

    def _share(self, agent: Agent) -> None:
        """Keep one copy of a placement in memory, not one per rank."""
        if agent.target is None:
            return
        digest = agent.target.digest
        agent.target = self._known.setdefault(digest, agent.target)
        if len(self._known) > 4:
            self._known.popitem(last=False)

    # --- the register ---------------------------------------------------------------------------

    def _answer(self, rank: Rank, question: Question) -> None:
        self._store.answer(rank, question)
        self.settle(rank)

    # --- the stagers ----------------------------------------------------------------------------

    def _stage(self, rank: Rank) -> None:
        job = rank.job
        if job is None or rank.rank in self._busy:
            return
        if isinstance(job, e.RunRounds):
            self._begun.setdefault(rank.rank, self.forward)
            return
        self._busy.add(rank.rank)
        self._loop.after(RESERVE_S, partial(self._staged, rank))

    def _staged(self, rank: Rank) -> None:
        self._busy.discard(rank.rank)
        if isinstance(rank.job, e.Reserve):
            rank.reserve()
        else:
            rank.discard()
        self.settle(rank)

    def _run_rounds(self) -> None:
        for number, begun in list(self._begun.items()):
            rank = self._ranks[number]
            job = rank.job
            stride = job.stride if isinstance(job, e.RunRounds) else 1
            if (self.forward - begun) % max(1, stride) == 0:
                self._transport.run_round(rank)
            if rank.rounds() is None:
                del self._begun[number]
                self.settle(rank)

    # --- forwards -------------------------------------------------------------------------------

    def _run_forward(self) -> None:
        """Run one forward on all ranks, which wait for each other; later, if one must wait."""
        loop, now = self._loop, self._loop.now
        waiting = [rank for rank in self._ranks if rank.blocked]
        if waiting:
            since = self._waits_since = now if self._waits_since is None else self._waits_since
            for rank in waiting:
                rank.stall_s = now - since
            demand(
                now - since <= self._pace.wait_s,
                f"forward {self.forward + 1} waits for rank {waiting[0].rank} for",
                f"{now - since} s, at most {self._pace.wait_s} s are allowed",
            )
            self.longest_wait_s = max(self.longest_wait_s, now - since)
            loop.after(POLL_S, self._run_forward)
            return
        self._waits_since = None
        self.forward += 1
        for rank in self._ranks:
            rank.run_forward()
        self._flip()
        self._run_rounds()
        for rank in self._ranks:
            if rank.outbox or rank.questions:
                self.settle(rank)
        if self._counters.record(self._traffic.step(self.forward)):
            self._hand_out()
        loop.after(self._pace.forward_s, self._run_forward)

    def _flip(self) -> None:
        """Hold the ranks to one map."""
        maps = {id(rank.map): rank.map for rank in self._ranks}
        digests = {placement.digest for placement in maps.values()}
        demand(len(digests) == 1, f"forward {self.forward} runs under maps {sorted(digests)}")
        held = self._ranks[0].map
        if held.digest != self.map.digest:
            self.map = held
            reports = self._counters.flip(held, self._ranks[0].agent.epoch)
            for rank, report in zip(self._ranks, reports, strict=bool(reports)):
                rank.heat.append(report)

    def _hand_out(self) -> None:
        for rank, report in zip(self._ranks, self._counters.drain(), strict=True):
            rank.heat.append(report)
