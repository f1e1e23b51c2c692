"""What ranks do in the executors' tests; each is played on every rank at once.

They return plain values, so that the test that asked for them can judge all ranks together.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from eplbd.errors import LocalProtocolError, TransferError
from eplbd.worker.executor import ExecutorStatistics
from tests.worker import weights
from tests.worker.ranks import Rank, Row, work_of

Contents = dict[tuple[int, int], dict[str, bytes]]
"""(layer, slot) -> name -> bytes."""


@dataclass
class Outcome:
    """What became of a rank's epochs."""

    contents: Contents = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long each failing stage took."""
    broken: bool = False
    statistics: ExecutorStatistics | None = None


def run_rounds(rank: Rank, rows: Sequence[Row], outcome: Outcome) -> None:
    """Reserve and stage every round, going on after failures as the agent does."""
    work = work_of(rank.rank, rows)
    rank.executor.reserve(work)
    for index in range(work.rounds):
        start = time.monotonic()
        try:
            rank.executor.stage(index)
        except TransferError as error:
            outcome.errors.append(str(error))
            outcome.seconds.append(time.monotonic() - start)


def finish(rank: Rank, outcome: Outcome, end: str) -> None:
    """Verify, and commit if that went well and `end` says so; otherwise discard, twice."""
    try:
        rank.executor.verify()
    except TransferError as error:
        outcome.errors.append(str(error))
        end = "discard"
    if end == "commit":
        rank.executor.commit()
    rank.executor.discard()
    rank.executor.discard()


def close(rank: Rank, outcome: Outcome) -> Outcome:
    """Write down how the rank ended."""
    layers = range(weights.LAYERS)
    outcome.contents = {
        (layer, slot): rank.contents(layer, slot)
        for layer in layers
        for slot in range(weights.SLOTS)
    }
    outcome.broken = rank.executor.lane_broken
    outcome.statistics = rank.executor.statistics()
    rank.barrier()
    return outcome


def epochs(rank: Rank, tables: Sequence[Sequence[Row]], end: str = "commit") -> Outcome:
    """One epoch after the other."""
    outcome = Outcome()
    rank.executor.renew(0)
    for rows in tables:
        run_rounds(rank, rows, outcome)
        finish(rank, outcome, end)
        rank.barrier()
    return close(rank, outcome)


def damaged(rank: Rank, rows: Sequence[Row], victim: int, how: str, after_round: int) -> Outcome:
    """One epoch in which something happens to `victim`'s first staging buffer after a round."""
    outcome = Outcome()
    rank.executor.renew(0)
    work = work_of(rank.rank, rows)
    rank.executor.reserve(work)
    for index in range(work.rounds):
        rank.executor.stage(index)
        if rank.rank == victim and index == after_round:
            damage(rank, how)
        rank.barrier()
    finish(rank, outcome, "commit")
    return close(rank, outcome)


def damage(rank: Rank, how: str) -> None:
    staged = rank.staging(0)
    if how == "flip":
        staged[1234] ^= 0x10
    else:
        words = staged[:8000].view("<u8")
        assert words[3] != words[700]
        words[[3, 700]] = words[[700, 3]]


def absent(rank: Rank, rows: Sequence[Row], missing: int) -> Outcome:
    """A peer stays away from an epoch; then all renew the lane and do it again."""
    outcome = Outcome()
    rank.executor.renew(0)
    if rank.rank != missing:
        run_rounds(rank, rows, outcome)
        outcome.broken = rank.executor.lane_broken
        finish(rank, outcome, "commit")
    rank.barrier()
    was_broken = outcome.broken
    rank.executor.renew(1)
    run_rounds(rank, rows, outcome)
    finish(rank, outcome, "commit")
    close(rank, outcome)
    outcome.broken = was_broken
    return outcome


def refused(rank: Rank, bad: Sequence[Row], good: Sequence[Row]) -> Outcome:
    """A work that cannot be, then one that can."""
    outcome = Outcome()
    rank.executor.renew(0)
    try:
        rank.executor.reserve(work_of(rank.rank, bad))
    except TransferError as error:
        outcome.errors.append(str(error))
    else:
        rank.executor.discard()
    run_rounds(rank, good, outcome)
    finish(rank, outcome, "commit")
    return close(rank, outcome)


def meets(rank: Rank) -> str:
    """Renew, and say what was wrong with it."""
    try:
        rank.executor.renew(0)
    except TransferError as error:
        return str(error)
    finally:
        rank.barrier()
    return ""


def misused(rank: Rank, rows: Sequence[Row]) -> list[str]:
    """Every call out of order; returns those that were not refused."""
    executor, work = rank.executor, work_of(rank.rank, rows)
    executor.renew(0)
    accepted: list[str] = []

    def refuse(name: str, *arguments: object) -> None:
        try:
            getattr(executor, name)(*arguments)
        except LocalProtocolError:
            return
        accepted.append(f"{name}{arguments}")

    refuse("renew", 0)
    refuse("stage", 0)
    refuse("verify")
    refuse("commit")
    executor.reserve(work)
    refuse("reserve", work)
    refuse("renew", 1)
    refuse("verify")
    refuse("commit")
    for index in range(work.rounds):
        executor.stage(index)
    refuse("stage", 0)
    refuse("commit")
    executor.verify()
    executor.commit()
    refuse("commit")
    refuse("verify")
    rank.barrier()
    return accepted
