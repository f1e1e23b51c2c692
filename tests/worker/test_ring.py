"""The heat ring: nothing is counted twice, nothing is lost uncounted, the forward never waits."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from eplbd.core.heat import PHASES
from eplbd.errors import LocalProtocolError
from eplbd.worker.memory import MemoryCounters
from eplbd.worker.ring import BLOCK_STEPS, Counters, HeatBlock, HeatRing

LAYERS, COLUMNS, BLOCKS = 3, 5, 4
PREFILL, DECODE = PHASES.index("prefill"), PHASES.index("decode")


class Engine(Protocol):
    """A forward that counts, and counters whose way to the host can be held up."""

    counters: Counters

    def run(self, forward: int) -> None: ...
    def hold(self, held: bool) -> None: ...
    def pending(self) -> int: ...


class NumpyEngine:
    """The forward in numpy."""

    def __init__(self) -> None:
        self.memory = MemoryCounters(LAYERS, COLUMNS, blocks=BLOCKS)
        self.counters: Counters = self.memory

    def run(self, forward: int) -> None:
        for layer in range(LAYERS):
            self.memory.pass_counts[layer] += expected(forward)[layer]
        self.memory.pass_routed += 10 * forward

    def hold(self, held: bool) -> None:
        self.memory.held = held

    def pending(self) -> int:
        return int(self.memory.pass_counts.sum())


@dataclass
class HeldMark:
    """A mark that is reached when the test says so."""

    held: bool = False

    def record(self) -> None: ...
    def reached(self) -> bool:
        return not self.held

    def hold_back(self) -> None: ...


class TorchEngine:
    """The forward in torch, under inference mode as an engine's is."""

    def __init__(self) -> None:
        torch = pytest.importorskip("torch")
        from eplbd.worker.torch_ring import TorchCounters

        self.mark = HeldMark()
        self.memory = TorchCounters(
            LAYERS,
            COLUMNS,
            device=torch.device("cpu"),
            blocks=BLOCKS,
            make_mark=lambda _: self.mark,
        )
        self.counters: Counters = self.memory
        self.address = self.memory.pass_counts.data_ptr()

    def run(self, forward: int) -> None:
        import torch

        with torch.inference_mode():
            for layer in range(LAYERS):
                self.memory.pass_counts[layer] += torch.from_numpy(expected(forward)[layer])
            self.memory.pass_routed += 10 * forward
        assert self.memory.pass_counts.data_ptr() == self.address

    def hold(self, held: bool) -> None:
        self.mark.held = held

    def pending(self) -> int:
        return int(self.memory.pass_counts.sum())


@pytest.fixture(params=["numpy", pytest.param("torch", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Engine:
    return NumpyEngine() if request.param == "numpy" else TorchEngine()


def expected(forward: int) -> NDArray[np.int32]:
    """What the forward counts."""
    return (np.arange(LAYERS * COLUMNS, dtype=np.int32) + 1000 * forward).reshape(LAYERS, COLUMNS)


def forwards(engine: Engine, ring: HeatRing, first: int, last: int) -> None:
    for forward in range(first, last):
        engine.run(forward)
        ring.record(forward, tokens=forward % 7, dummy=forward % 5 == 0, phase=forward % 3)


def numbers(blocks: list[HeatBlock]) -> list[int]:
    """The forwards in `blocks`, after checking all that is said of each."""
    found = []
    for block in blocks:
        for step in range(len(block.counts)):
            forward = block.first_forward + step
            found.append(forward)
            assert np.array_equal(block.counts[step], expected(forward))
            assert block.routed[step] == 10 * forward
            assert block.tokens[step] == forward % 7
            assert block.dummy[step] == (forward % 5 == 0)
            assert block.phase[step] == forward % 3
    return found


def test_every_step_arrives_once_however_often_the_ring_wraps(engine: Engine) -> None:
    ring, found = HeatRing(engine.counters), []
    for start in range(0, 1000, 50):
        forwards(engine, ring, start, start + 50)
        found += numbers(ring.drain())
    ring.flush()
    found += numbers(ring.drain())
    assert found == list(range(1000))
    assert ring.statistics().steps == 1000
    assert ring.statistics().lost_steps == 0


def test_blocks_come_whole_until_they_are_flushed(engine: Engine) -> None:
    ring = HeatRing(engine.counters, epoch=4)
    forwards(engine, ring, 0, BLOCK_STEPS + 3)
    assert [len(block.counts) for block in ring.drain()] == [BLOCK_STEPS]
    assert ring.drain() == []
    ring.flush()
    ring.flush()
    (rest,) = ring.drain()
    assert (rest.first_forward, len(rest.counts), rest.epoch) == (BLOCK_STEPS, 3, 4)


def test_a_slow_reader_loses_the_newest_steps_counted(engine: Engine) -> None:
    ring = HeatRing(engine.counters)
    room = BLOCKS * BLOCK_STEPS
    forwards(engine, ring, 0, room + 10)
    assert engine.pending() == 0, "the next pass must start from zero all the same"
    assert ring.statistics().lost_steps == 10
    assert numbers(ring.drain()) == list(range(room))
    forwards(engine, ring, room + 10, room + 20)
    ring.flush()
    assert numbers(ring.drain()) == list(range(room + 10, room + 20))
    assert ring.statistics().lost_steps == 10


def test_what_has_not_arrived_is_not_read(engine: Engine) -> None:
    ring = HeatRing(engine.counters)
    engine.hold(True)
    forwards(engine, ring, 0, 2 * BLOCK_STEPS)
    assert ring.drain() == []
    engine.hold(False)
    assert numbers(ring.drain()) == list(range(2 * BLOCK_STEPS))


def test_a_flip_splits_the_block(engine: Engine) -> None:
    ring = HeatRing(engine.counters, epoch=1)
    forwards(engine, ring, 0, 5)
    ring.flip(2)
    forwards(engine, ring, 5, 12)
    ring.flip(3)
    ring.flip(4)
    forwards(engine, ring, 12, 13)
    ring.flush()
    blocks = ring.drain()
    assert [(b.epoch, b.first_forward, len(b.counts)) for b in blocks] == [
        (1, 0, 5),
        (2, 5, 7),
        (4, 12, 1),
    ]
    assert numbers(blocks) == list(range(13))


def test_a_gap_in_the_forwards_splits_the_block(engine: Engine) -> None:
    ring = HeatRing(engine.counters)
    forwards(engine, ring, 0, 4)
    forwards(engine, ring, 6, 9)
    ring.flush()
    assert [block.first_forward for block in ring.drain()] == [0, 6]


def test_blocks_are_copies_and_read_only(engine: Engine) -> None:
    ring = HeatRing(engine.counters)
    forwards(engine, ring, 0, BLOCK_STEPS)
    (block,) = ring.drain()
    kept = block.counts.copy()
    forwards(engine, ring, 100, 100 + BLOCKS * BLOCK_STEPS)
    assert np.array_equal(block.counts, kept)
    for array in (block.counts, block.routed, block.tokens, block.dummy, block.phase):
        assert not array.flags.writeable


def test_a_block_falls_into_runs_of_one_phase(engine: Engine) -> None:
    ring = HeatRing(engine.counters)
    for forward, phase in enumerate([DECODE, DECODE, PREFILL, 0, 0, DECODE]):
        engine.run(forward)
        ring.record(forward, tokens=forward, phase=phase)
    ring.flush()
    (block,) = ring.drain()
    runs = [(phase, run.first_forward, run.tokens.tolist()) for phase, run in block.runs()]
    assert runs == [
        ("decode", 0, [0, 1]),
        ("prefill", 2, [2]),
        ("all", 3, [3, 4]),
        ("decode", 5, [5]),
    ]


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads change places after 10 us.

    After Python's 5 ms one that lets go of the lock at every tensor operation, as a forward does,
    would wait as long for each.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switches")
def test_two_threads_need_no_lock(engine: Engine) -> None:
    """Forward and agent at full speed: what arrives is exact, and the rest is counted."""
    ring, over, found = HeatRing(engine.counters), threading.Event(), list[int]()
    total = 4000

    def agent() -> None:
        while not over.is_set():
            found.extend(numbers(ring.drain()))

    reader = threading.Thread(target=agent, daemon=True)
    reader.start()
    try:
        forwards(engine, ring, 0, total)
        ring.flush()
    finally:
        over.set()
        reader.join(20)
    found += numbers(ring.drain())
    assert found == sorted(set(found))
    assert len(found) + ring.statistics().lost_steps == total
    assert len(found) == ring.statistics().steps


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (3, 5, 1)])
def test_a_ring_that_could_hold_nothing_is_refused(shape: tuple[int, int, int]) -> None:
    layers, columns, blocks = shape
    with pytest.raises(LocalProtocolError, match="heat ring of"):
        MemoryCounters(layers, columns, blocks=blocks)
