"""Transfers between simulated ranks: bytes meet in rounds, or are missed.

A rank that waits for a peer which walked away from rounds that both had begun is a broken law, not
a delay: it is what hangs a real transport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core.agent_events import RoundsDone, RoundsFailed, RunRounds
from eplbd.core.rounds import Col
from eplbd.offline.cluster.laws import BrokenLawError, demand

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from eplbd.offline.cluster.rank import Job, Rank


class Transport:
    """What the stagers of `ranks` share."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self.ranks = ranks

    def run_round(self, me: Rank) -> None:
        """Let a rank's stager go on by a round, if its peers are in the same."""
        job = me.rounds()
        if job is None or me.reserved is None:
            raise BrokenLawError(f"rank {me.rank} has no rounds to run")
        if job.round >= me.reserved.rounds:
            self._finish(me, job)
            return
        waiting = False
        for row in me.transfers(job.round):
            key = tuple(row.tolist())
            if key in job.done:
                continue
            if row[Col.SRC] == me.rank and row[Col.DST] == me.rank:
                me.buffers[int(row[Col.DST_BUFFER])] = me.read(row)
                job.done.add(key)
                continue
            waiting |= not self._meet(me, job, row, key)
        if not waiting:
            job.round += 1

    def _meet(self, me: Rank, job: Job, row: NDArray[np.int32], key: tuple[int, ...]) -> bool:
        """Move a transfer's bytes if both ends are in its round."""
        src, dst = self.ranks[row[Col.SRC]], self.ranks[row[Col.DST]]
        other = dst if me is src else src
        theirs = other.rounds()
        if theirs is None or about(theirs) != about(job):
            self.await_peer(me, job, other)
            return False
        if theirs.round != job.round:
            return False
        dst.buffers[int(row[Col.DST_BUFFER])] = src.read(row)
        job.done.add(key)
        theirs.done.add(key)
        return True

    def await_peer(self, me: Rank, job: Job, other: Rank) -> None:
        """Wait for a rank that is not in the rounds: it must still have them before it."""
        queued = any(about(later) == about(job) for later in other.stager)
        epoch = about(job)[1]
        demand(
            queued or other.agent.pending == epoch,
            f"rank {other.rank} walked away from epoch {epoch}: rank {me.rank} waits for it",
        )

    def _finish(self, me: Rank, job: Job) -> None:
        prepare = me.reserved
        if prepare is None:
            raise BrokenLawError(f"rank {me.rank} ends rounds without a reservation")
        me.stager.popleft()
        rows = prepare.transfers[prepare.transfers[:, Col.DST] == me.rank]
        whole = all(me.buffers.get(int(row[Col.DST_BUFFER])) == me.expected(row) for row in rows)
        if whole and not job.broken:
            me.step(self.done(me, job))
        else:
            me.step(RoundsFailed(*about(job), job.broken or "checksum", bool(job.broken)))

    def done(self, me: Rank, job: Job) -> RoundsDone:
        """Return what a rank's stager says when all of its bytes came."""
        return RoundsDone(*about(job), me.forward)


def about(job: Job) -> tuple[int, int]:
    """Term and epoch of rounds; what no rounds have for anything else."""
    effect = job.effect
    return (effect.term, effect.epoch) if isinstance(effect, RunRounds) else (-1, -1)
