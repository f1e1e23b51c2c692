"""Ranks for tests: one scenario, played by threads over memory or by processes over torch.

A scenario is a function of a module, `scenario(rank: Rank, *arguments) -> result`; `Stage.play`
runs it on every rank at once and returns the results by rank, or raises what a rank raised.
"""

import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from eplbd.core.rounds import Col
from eplbd.worker.executor import Executor, RankWork
from eplbd.worker.memory import MemoryExecutor, MemoryFabric
from tests.worker import weights

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Result = TypeVar("Result")
Row = tuple[int, ...]

DEADLINE_S = 60.0
"""For a whole scenario; the first one also starts its processes."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How executors are made. timeout_s: theirs. odd_rank: one whose layout differs, or -1."""

    kind: str = "memory"
    experts_per_rank: int = 2
    timeout_s: float = 20.0
    odd_rank: int = -1
    faulty_slot: int = -1
    """Local slot of rank 0, in layer 0, whose reading fails."""


class Rank(Protocol):
    """What a scenario has in hand."""

    rank: int
    ranks: int
    executor: Executor

    def contents(self, layer: int, slot: int) -> dict[str, bytes]: ...
    def staging(self, buffer: int) -> NDArray[np.uint8]: ...
    def barrier(self) -> None: ...


class Stage(Protocol):
    """Where scenarios are played."""

    def play(
        self,
        setting: Setting,
        ranks: int,
        scenario: Callable[..., Result],
        *arguments: object,
    ) -> list[Result]: ...


def row(
    round_index: int,
    layer: int,
    expert: int,
    source: tuple[int, int],
    target: tuple[int, int],
    buffer: int = 0,
    *,
    relay: int = -1,
) -> Row:
    """A row of a transfer table; ends are (rank, slot). relay: staging buffer to read instead."""
    slot = -1 if relay >= 0 else source[1]
    return (round_index, layer, expert, source[0], slot, relay, target[0], target[1], buffer)


def work_of(rank: int, rows: Sequence[Row]) -> RankWork:
    """The part of an epoch's `rows` that concerns `rank`."""
    table = np.array(rows, dtype=np.int32).reshape(-1, len(Col))
    mine = (table[:, Col.SRC] == rank) | (table[:, Col.DST] == rank)
    rounds = int(table[:, Col.ROUND].max(initial=-1)) + 1
    return RankWork(rank, rounds, table[mine])


# --- threads over memory ------------------------------------------------------------------------


class ThreadRank:
    """A rank in numpy."""

    def __init__(self, setting: Setting, rank: int, fabric: MemoryFabric) -> None:
        self.rank, self.ranks = rank, fabric.ranks
        layers = weights.LAYERS - (rank == setting.odd_rank)
        self._layers = [
            {spec.name: weights.stacked(rank, layer, spec) for spec in weights.specs_of(layer)}
            for layer in range(layers)
        ]
        self._memory = MemoryExecutor(
            fabric,
            rank,
            self._layers,
            experts_per_rank=setting.experts_per_rank,
            timeout_s=setting.timeout_s,
        )
        self.executor: Executor = self._memory
        self._barrier: threading.Barrier | None = None

    def contents(self, layer: int, slot: int) -> dict[str, bytes]:
        return {name: array[slot].tobytes() for name, array in self._layers[layer].items()}

    def staging(self, buffer: int) -> NDArray[np.uint8]:
        return self._memory.staging(buffer)

    def meet_at(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier

    def barrier(self) -> None:
        assert self._barrier is not None
        self._barrier.wait(DEADLINE_S)


class ThreadStage:
    """Plays scenarios in threads."""

    def play(
        self,
        setting: Setting,
        ranks: int,
        scenario: Callable[..., Result],
        *arguments: object,
    ) -> list[Result]:
        fabric = MemoryFabric(ranks)
        barrier = threading.Barrier(ranks)
        cast = [ThreadRank(setting, rank, fabric) for rank in range(ranks)]
        for rank in cast:
            rank.meet_at(barrier)
        with ThreadPoolExecutor(ranks) as pool:
            playing = [pool.submit(scenario, rank, *arguments) for rank in cast]
            return [each.result(DEADLINE_S) for each in playing]


# --- processes over torch -----------------------------------------------------------------------


class ProcessStage:
    """Plays scenarios in processes, which are started once: torch takes seconds to load."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._store: Store | None = None
        self._port = 0
        self._plays = 0
        self._cast: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def play(
        self,
        setting: Setting,
        ranks: int,
        scenario: Callable[..., Result],
        *arguments: object,
    ) -> list[Result]:
        self._plays += 1
        self._start(ranks)
        pipes = [pipe for _, pipe in self._cast[:ranks]]
        for rank, pipe in enumerate(pipes):
            pipe.send((self._plays, setting, rank, ranks, scenario, arguments))
        deadline = time.monotonic() + DEADLINE_S
        answers: list[tuple[Result, str]] = [self._answer(pipe, deadline) for pipe in pipes]
        for rank, (_, complaint) in enumerate(answers):
            assert not complaint, f"rank {rank}:\n{complaint}"
        return [result for result, _ in answers]

    def stop(self) -> None:
        for process, pipe in self._cast:
            pipe.close()
            process.kill()
            process.join()
        self._cast.clear()

    def _start(self, ranks: int) -> None:
        if self._store is None:
            from tests.worker.torch_ranks import serve_store

            self._store, self._port = serve_store()
        from tests.worker.torch_ranks import serve

        while len(self._cast) < ranks:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=serve, args=(theirs, self._port), daemon=True)
            process.start()
            theirs.close()
            self._cast.append((process, ours))

    def _answer(self, pipe: Connection, deadline: float) -> tuple[Result, str]:
        try:
            if pipe.poll(max(0.0, deadline - time.monotonic())):
                answer: tuple[Result, str] = pipe.recv()
                return answer
            problem = f"no answer in {DEADLINE_S} s"
        except (EOFError, ConnectionError) as error:
            problem = f"a rank's process died: {error!r}"
        self.stop()
        raise AssertionError(problem)


def answer(pipe: Connection, play: Callable[[], object]) -> None:
    """Send a scenario's result, or the traceback of what it raised."""
    try:
        pipe.send((play(), ""))
    except Exception:  # noqa: BLE001 (a test's process reports whatever happened to its parent)
        pipe.send((None, traceback.format_exc()))
