"""A simulated transport that can be harmed: transfers fail, bytes flip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core.agent_events import Discard, Reserve, RoundsDone, RunRounds
from eplbd.offline.cluster import transport
from eplbd.offline.cluster.rank import WRONG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplbd.offline.cluster.rank import Job, Rank


class Transport(transport.Transport):
    """What the stagers of `ranks` share."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        super().__init__(ranks)
        self.broken: set[tuple[int, int]] = set()
        """Epochs in which a transfer failed: there a rank may wait in vain, until it times out."""
        self.pending: dict[str, int] = {}
        """Harm that strikes when next there is something to strike: what, on which rank."""
        self.took: dict[int, tuple[float, float]] = {}
        """How long each rank says that it staged and transferred, seconds."""

    def run(self, rank: int) -> None:
        """Let a rank's stager do one thing."""
        me = self.ranks[rank]
        match me.job:
            case Reserve():
                me.reserve()
            case Discard():
                me.discard()
            case RunRounds():
                self.run_round(me)

    def run_round(self, me: Rank) -> None:
        job, prepare = me.rounds(), me.reserved
        assert job is not None
        assert prepare is not None
        if job.round and self.pending.get("fail") == me.rank:
            del self.pending["fail"]
            self.fail(me.rank)
        if job.round >= prepare.rounds and self.pending.get("corrupt") == me.rank and me.buffers:
            del self.pending["corrupt"]
            self.corrupt(me.rank)
        super().run_round(me)

    def await_peer(self, me: Rank, job: Job, other: Rank) -> None:
        if transport.about(job) not in self.broken:
            super().await_peer(me, job, other)
        elif other.agent.pending != transport.about(job)[1] and me.reserved is not None:
            job.round, job.broken = me.reserved.rounds, f"rank {other.rank} did not answer"

    def done(self, me: Rank, job: Job) -> RoundsDone:
        stage_s, transfer_s = self.took.get(me.rank, (0.0, 0.0))
        return RoundsDone(*transport.about(job), me.forward, stage_s, transfer_s=transfer_s)

    def fail(self, rank: int) -> None:
        """A transfer fails: every rank of the round ends its rounds, broken."""
        for other in self.ranks:
            job = other.rounds()
            if job is not None and other.reserved is not None:
                self.broken.add(transport.about(job))
                job.round, job.broken = other.reserved.rounds, f"transfer of rank {rank} failed"

    def corrupt(self, rank: int) -> None:
        """A byte flips in a staging buffer before it was verified."""
        me = self.ranks[rank]
        if me.rounds() is not None and me.buffers:
            me.buffers[min(me.buffers)] = WRONG
