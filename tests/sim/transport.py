"""The simulated transport: bytes meet in rounds, or are missed.

A rank that waits for a peer which walked away from rounds that both had begun is an assertion, not
a delay: it is what hangs a real transport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core.agent_events import Discard, Reserve, RoundsDone, RoundsFailed, RunRounds
from eplbd.core.rounds import Col
from tests.sim.rank import WRONG, Job, SimRank

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Transport:
    """What the stagers of `ranks` share."""

    def __init__(self, ranks: list[SimRank]) -> None:
        self.ranks = ranks
        self.broken: set[tuple[int, int]] = set()
        """Epochs in which a transfer failed: there a rank may wait in vain, until it times out."""
        self.pending: dict[str, int] = {}
        """Harm that strikes when next there is something to strike: what, on which rank."""
        self.took: dict[int, tuple[float, float]] = {}
        """How long each rank says that it staged and transferred, seconds."""

    def run(self, rank: int) -> None:
        """Let a rank's stager do one thing."""
        me = self.ranks[rank]
        job = me.stager[0]
        match job.effect:
            case Reserve():
                me.reserve()
            case Discard():
                me.discard()
            case RunRounds():
                self._run_round(me, job)

    def _run_round(self, me: SimRank, job: Job) -> None:
        prepare = me.reserved
        assert prepare is not None
        if job.round and self.pending.get("fail") == me.rank:
            del self.pending["fail"]
            self.fail(me.rank)
        if job.round >= prepare.rounds:
            if me.buffers and self.pending.get("corrupt") == me.rank:
                del self.pending["corrupt"]
                me.buffers[min(me.buffers)] = WRONG
            self._finish(me, job)
            return
        waiting = False
        for row in me.transfers(job.round):
            key = tuple(int(v) for v in row)
            if key in job.done:
                continue
            if int(row[Col.SRC]) == me.rank and int(row[Col.DST]) == me.rank:
                me.buffers[int(row[Col.DST_BUFFER])] = me.read(row)
                job.done.add(key)
                continue
            waiting |= not self._meet(me, job, row, key)
        if not waiting:
            job.round += 1

    def _meet(self, me: SimRank, job: Job, row: NDArray[np.int32], key: tuple[int, ...]) -> bool:
        """Move a transfer's bytes if both ends are in its round."""
        src, dst = self.ranks[int(row[Col.SRC])], self.ranks[int(row[Col.DST])]
        other = dst if me is src else src
        theirs = other.rounds()
        assert isinstance(job.effect, RunRounds)
        same = (
            theirs is not None
            and isinstance(theirs.effect, RunRounds)
            and (theirs.effect.term, theirs.effect.epoch) == (job.effect.term, job.effect.epoch)
        )
        if not same or theirs is None:
            self._await(me, job, other, job.effect)
            return False
        if theirs.round != job.round:
            return False
        dst.buffers[int(row[Col.DST_BUFFER])] = src.read(row)
        job.done.add(key)
        theirs.done.add(key)
        return True

    def _await(self, me: SimRank, job: Job, other: SimRank, effect: RunRounds) -> None:
        """A peer that is not in the rounds must still have them before it, or a transfer failed."""
        if (effect.term, effect.epoch) in self.broken:
            if other.agent.pending != effect.epoch and me.reserved is not None:
                job.round, job.broken = me.reserved.rounds, f"rank {other.rank} did not answer"
            return
        agent = other.agent
        queued = any(
            isinstance(job.effect, RunRounds) and job.effect.epoch == effect.epoch
            for job in other.stager
        )
        assert queued or agent.pending == effect.epoch, (
            f"rank {other.rank} walked away from epoch {effect.epoch}: peers wait for its bytes"
        )

    def _finish(self, me: SimRank, job: Job) -> None:
        assert me.reserved is not None
        assert isinstance(job.effect, RunRounds)
        me.stager.popleft()
        rows = me.reserved.transfers[me.reserved.transfers[:, Col.DST] == me.rank]
        bad = [
            row
            for row in rows
            if me.buffers.get(int(row[Col.DST_BUFFER]))
            != (int(row[Col.LAYER]), int(row[Col.EXPERT]))
        ]
        term, epoch = job.effect.term, job.effect.epoch
        if bad or job.broken:
            me.step(RoundsFailed(term, epoch, job.broken or "checksum", bool(job.broken)))
        else:
            stage_s, transfer_s = self.took.get(me.rank, (0.0, 0.0))
            done = RoundsDone(term, epoch, me.forward, stage_s, transfer_s=transfer_s)
            me.step(done)

    def fail(self, rank: int) -> None:
        """A transfer fails: every rank of the round ends its rounds, broken."""
        for other in self.ranks:
            job = other.rounds()
            if job is not None and other.reserved is not None:
                assert isinstance(job.effect, RunRounds)
                self.broken.add((job.effect.term, job.effect.epoch))
                job.round, job.broken = other.reserved.rounds, f"transfer of rank {rank} failed"

    def corrupt(self, rank: int) -> None:
        """A byte flips in a staging buffer before it was verified."""
        me = self.ranks[rank]
        if me.rounds() is not None and me.buffers:
            me.buffers[min(me.buffers)] = WRONG
