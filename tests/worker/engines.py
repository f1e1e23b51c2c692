"""An engine of one rank for the tests of the hook: two slots, and a copy ready to commit."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from eplbd.core.agent_events import AgentEvent
from eplbd.worker.hook import Arm, ForwardHook
from eplbd.worker.memory import MemoryCounters, MemoryExecutor, MemoryFabric
from eplbd.worker.ring import HeatRing
from tests.worker.ranks import row, work_of


class Engine:
    """Weights, hook, what it told, and the forwards before which a map was written."""

    def __init__(self, wait_limit_s: float = 60.0) -> None:
        self.weights = np.array([[7], [0]])
        self.executor = MemoryExecutor(MemoryFabric(1), 0, [{"w": self.weights}])
        self.executor.renew(0)
        self.ring = HeatRing(MemoryCounters(1, 2))
        self.told: list[AgentEvent] = []
        self.hook = ForwardHook(
            self.executor, self.ring, self.told.append, wait_limit_s=wait_limit_s
        )
        self.flips: list[tuple[int, int]] = []

    def stage(self) -> None:
        self.executor.discard()
        self.executor.reserve(work_of(0, [row(0, 0, 0, (0, 0), (0, 1))]))
        self.executor.stage(0)
        self.executor.verify()

    def arm(self, at: int, guard: int = 0, *, epoch: int = 1, attempt: int = 1) -> Arm:
        return Arm(3, epoch, attempt, at, at - guard, lambda: self.write(epoch))

    def write(self, epoch: int) -> None:
        assert self.weights[1] == 7, "the map came before the weights"
        self.flips.append((epoch, self.hook.forward))

    def forward(self) -> None:
        self.hook.before_forward()
        self.hook.after_forward(1)

    def forwards(self, last: int) -> None:
        while self.hook.forward < last:
            self.forward()


@contextmanager
def switching_every(interval_s: float) -> Iterator[None]:
    """Let the interpreter switch threads this often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
