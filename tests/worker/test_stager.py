"""The stager: what it does with an order, and what it answers."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event

import numpy as np
import pytest

from eplbd.core.agent_events import (
    AgentEvent,
    Discard,
    Reserve,
    Reserved,
    ReserveFailed,
    RoundsDone,
    RoundsFailed,
    RunRounds,
)
from eplbd.core.messages import Prepare
from eplbd.errors import LocalProtocolError, TransferError
from eplbd.worker import stager as module
from eplbd.worker.hook import ForwardHook
from eplbd.worker.memory import MemoryCounters, MemoryExecutor, MemoryFabric
from eplbd.worker.ring import HeatRing
from eplbd.worker.stager import Stager
from tests.worker.ranks import Row, row, work_of
from tests.worker.waiting import DEADLINE_S, aside, until

FOREVER_S = 600.0

SWAP = [row(0, 0, 0, (0, 0), (1, 1), 0), row(1, 0, 1, (1, 0), (0, 1), 0)]
"""Rank 0 sends its slot 0 in the first round and receives into its slot 1 in the second."""


class Executor(MemoryExecutor):
    """The real one; a round may fail on this rank alone, after its messages were exchanged."""

    def __init__(self, fabric: MemoryFabric, rank: int, *, timeout_s: float = 10.0) -> None:
        self.weights = np.array([[10 * rank], [10 * rank + 1]])
        super().__init__(fabric, rank, [{"w": self.weights}], timeout_s=timeout_s)
        self.faults: dict[int, Exception] = {}
        self.staged: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.before_round: Callable[[], object] = lambda: None

    def stage(self, round_index: int) -> None:
        self.before_round()
        super().stage(round_index)
        self.staged.put(round_index)
        if round_index in self.faults:
            raise self.faults[round_index]


class Rank:
    """A stager with its parts, and the adapter's side: `stage_maps`."""

    def __init__(self, fabric: MemoryFabric, rank: int, *, timeout_s: float = 10.0) -> None:
        self.rank = rank
        self.executor = Executor(fabric, rank, timeout_s=timeout_s)
        self.hook = ForwardHook(self.executor, HeatRing(MemoryCounters(1, 2)), lambda _: None)
        self.told: queue.SimpleQueue[AgentEvent] = queue.SimpleQueue()
        self.stager = Stager(rank, self.executor, self, self.hook, self.told.put)
        self.refusal: Exception | None = None
        self.wrote = 0

    def stage_maps(self, prepare: Prepare) -> Callable[[], None]:
        assert prepare.epoch
        if self.refusal is not None:
            raise self.refusal
        return self._write

    def _write(self) -> None:
        self.wrote += 1

    def reserve(self, rows: list[Row], *, epoch: int = 1, lane: int = 0) -> None:
        self.stager.order(Reserve(prepare_of(self.rank, rows, epoch, lane)))

    def answer(self) -> AgentEvent:
        return self.told.get(timeout=DEADLINE_S)

    def forward(self) -> None:
        self.hook.before_forward()
        self.hook.after_forward(1)


def prepare_of(rank: int, rows: list[Row], epoch: int, lane: int) -> Prepare:
    """What a stager reads of a prepare; the agent has checked the rest."""
    work, none = work_of(rank, rows), np.zeros((0, 0), np.int32)
    rounds = 1 + max((each[0] for each in rows), default=-1)
    return Prepare(
        term=1,
        epoch=epoch,
        base_digest="",
        target_digest="",
        lane=lane,
        rounds=rounds,
        layers=np.zeros(0, np.int32),
        slots=np.zeros((0, 0, 0), np.int32),
        transfers=work.transfers,
        replica_count=none,
        physical=np.zeros((0, 0, 0), np.int32),
        log2phy=none,
        expert_map=none,
    )


@contextmanager
def running(ranks: int, *, timeout_s: float = 10.0) -> Iterator[list[Rank]]:
    fabric = MemoryFabric(ranks)
    cast = [Rank(fabric, rank, timeout_s=timeout_s) for rank in range(ranks)]
    for each in cast:
        each.stager.thread.start()
    with ExitStack() as stack:
        for each in cast:
            stack.callback(each.stager.thread.join, DEADLINE_S)
        for each in cast:
            stack.callback(each.stager.stop)
        yield cast


@pytest.fixture
def pair() -> Iterator[list[Rank]]:
    """Two ranks on lane 0 with `SWAP` reserved."""
    with running(2) as cast:
        for each in cast:
            each.reserve(SWAP)
        assert [each.answer() for each in cast] == [Reserved(1, 1)] * 2
        yield cast


@pytest.fixture
def alone() -> Iterator[Rank]:
    """One rank with three rounds of local copies reserved."""
    with running(1) as [rank]:
        rank.reserve([row(i, 0, 0, (0, 0), (0, i), i) for i in range(2)])
        assert rank.answer() == Reserved(1, 1)
        yield rank


# --- rounds -------------------------------------------------------------------------------------


def test_rounds_are_run_verified_and_told_with_figures(pair: list[Rank]) -> None:
    pair[0].hook.forward = 7
    for each in pair:
        each.stager.order(RunRounds(1, 1, 1))
    done = [each.answer() for each in pair]
    assert isinstance(done[0], RoundsDone)
    assert (done[0].forward, done[0].bytes_received) == (7, 8)
    assert 0.0 < done[0].transfer_s < done[0].stage_s < DEADLINE_S
    for each in pair:
        each.executor.commit()
        assert each.stager.write is not None
        each.stager.write()
    assert [each.executor.weights.ravel().tolist() for each in pair] == [[0, 10], [10, 0]]
    assert [each.wrote for each in pair] == [1, 1]


@pytest.mark.parametrize(
    "error", [TransferError("a kernel\nfailed"), RuntimeError("a kernel failed")]
)
def test_rounds_are_carried_through_after_a_failure(pair: list[Rank], error: Exception) -> None:
    """Rank 1 gets what the second round owes it, though rank 0's first one failed."""
    pair[0].executor.faults = {0: error}
    for each in pair:
        each.stager.order(RunRounds(1, 1, 1))
    failed, done = (each.answer() for each in pair)
    assert failed == RoundsFailed(1, 1, "a kernel failed", lane_broken=False)
    assert isinstance(done, RoundsDone)
    assert [each.executor.staged.qsize() for each in pair] == [2, 2]


def test_the_first_failure_is_the_one_told(pair: list[Rank]) -> None:
    pair[0].executor.faults = {0: TransferError("first"), 1: TransferError("second")}
    for each in pair:
        each.stager.order(RunRounds(1, 1, 1))
    assert pair[0].answer() == RoundsFailed(1, 1, "first")
    assert isinstance(pair[1].answer(), RoundsDone)


def test_damage_is_found_before_it_is_told_done(pair: list[Rank]) -> None:
    def damage() -> None:
        if not pair[1].executor.staged.empty():
            pair[1].executor.staging(0)[0] ^= 1

    pair[1].executor.before_round = damage
    for each in pair:
        each.stager.order(RunRounds(1, 1, 1))
    assert isinstance(pair[0].answer(), RoundsDone)
    failed = pair[1].answer()
    assert isinstance(failed, RoundsFailed)
    assert "layer 0, expert 0" in failed.reason
    assert not failed.lane_broken


def test_a_broken_lane_is_told(pair: list[Rank]) -> None:
    pair[1].stager.stop()
    pair[0].executor._timeout_s = 0.01  # noqa: SLF001 (so that the test takes no longer)
    pair[0].stager.order(RunRounds(1, 1, 1))
    failed = pair[0].answer()
    assert isinstance(failed, RoundsFailed)
    assert "did not come in time" in failed.reason
    assert failed.lane_broken
    assert not pair[0].hook.staging


def test_discard_comes_after_the_rounds(pair: list[Rank]) -> None:
    rank = pair[0]
    entered, go_on = Event(), Event()

    def hold() -> None:
        entered.set()
        assert go_on.wait(DEADLINE_S)

    rank.executor.before_round = hold
    for each in pair:
        each.stager.order(RunRounds(1, 1, 1))
        each.stager.order(Discard(1, 1))
    assert entered.wait(DEADLINE_S)
    assert rank.stager.write is not None
    go_on.set()
    assert all(isinstance(each.answer(), RoundsDone) for each in pair)
    for each in pair:
        each.reserve(SWAP, epoch=2)
    assert [each.answer() for each in pair] == [Reserved(1, 2)] * 2
    rank.stager.order(Discard(1, 2))
    until(lambda: rank.stager.write is None, "the maps are discarded with the weights")
    with pytest.raises(LocalProtocolError, match="nothing"):
        rank.executor.verify()


# --- reserving ----------------------------------------------------------------------------------


def test_a_newer_lane_is_entered_first_and_an_equal_one_kept(pair: list[Rank]) -> None:
    assert [each.executor.lane for each in pair] == [0, 0]
    for epoch, lane in ((2, 0), (3, 4)):
        for each in pair:
            each.reserve(SWAP, epoch=epoch, lane=lane)
        assert [each.answer() for each in pair] == [Reserved(1, epoch)] * 2
        assert [each.executor.lane for each in pair] == [lane, lane]


def test_a_lane_where_a_rank_stays_away_is_broken_and_the_next_one_is_not() -> None:
    with running(2, timeout_s=0.05) as (here, away):
        here.reserve(SWAP)
        failed = here.answer()
        assert isinstance(failed, ReserveFailed)
        assert "ranks [1] did not come" in failed.reason
        assert failed.lane_broken
        here.reserve(SWAP, epoch=2)
        assert here.answer() == ReserveFailed(1, 2, "lane 0 is broken", lane_broken=True)
        for each in (here, away):
            each.executor._timeout_s = DEADLINE_S  # noqa: SLF001 (they meet, however busy it is)
            each.reserve(SWAP, epoch=3, lane=1)
        assert [each.answer() for each in (here, away)] == [Reserved(1, 3)] * 2


def test_a_work_that_has_no_room_is_refused_by_name(alone: Rank) -> None:
    alone.reserve([row(0, 0, 0, (0, 0), (0, 1), 7)], epoch=2)
    failed = alone.answer()
    assert isinstance(failed, ReserveFailed)
    assert "needs staging buffer 7 of 2" in failed.reason
    assert not failed.lane_broken
    alone.reserve([row(0, 0, 0, (0, 0), (0, 1))], epoch=3)
    assert alone.answer() == Reserved(1, 3)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TransferError("maps: no room"), "maps: no room"),
        (RuntimeError("out of memory\n  on device 3"), "out of memory on device 3"),
        (KeyError("layer 5"), "'layer 5'"),
        (ValueError(), "ValueError"),
    ],
)
def test_maps_that_an_adapter_refuses_refuse_the_epoch(
    alone: Rank, error: Exception, reason: str
) -> None:
    alone.refusal = error
    alone.reserve([], epoch=2)
    assert alone.answer() == ReserveFailed(1, 2, reason)
    alone.refusal = None
    alone.reserve([], epoch=3)
    assert alone.answer() == Reserved(1, 3)


# --- bubbles ------------------------------------------------------------------------------------


def test_a_round_waits_for_its_forwards(alone: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", FOREVER_S)
    passed: list[int] = []
    ended, hook = Event(), alone.hook
    alone.executor.before_round = lambda: passed.append(hook.times.staging_forwards)

    def serve() -> None:
        while not ended.is_set():
            alone.forward()
            until(lambda: ended.is_set() or not hook.bubble.is_set(), "the stager took notice")

    with aside(serve, "forwards"):
        alone.stager.order(RunRounds(1, 1, 3))
        assert isinstance(alone.answer(), RoundsDone)
        ended.set()
    assert passed[0] >= 3
    assert passed[1] - passed[0] == 3
    assert not hook.staging


def test_an_idle_engine_is_not_waited_for(alone: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_FORWARD_S", FOREVER_S)
    alone.forward()
    alone.stager.order(RunRounds(1, 1, 10_000))
    assert isinstance(alone.answer(), RoundsDone)


def test_a_long_forward_is_no_idleness(alone: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.001)
    monkeypatch.setattr(module, "LONGEST_FORWARD_S", FOREVER_S)
    alone.hook.before_forward()
    alone.stager.order(RunRounds(1, 1, 1))
    with pytest.raises(queue.Empty):
        alone.executor.staged.get(timeout=0.1)
    alone.hook.after_forward(1)
    assert isinstance(alone.answer(), RoundsDone)


def test_a_forward_that_never_ends_is_not_waited_for(
    alone: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_FORWARD_S", 0.001)
    alone.hook.before_forward()
    alone.stager.order(RunRounds(1, 1, 10_000))
    assert isinstance(alone.answer(), RoundsDone)
