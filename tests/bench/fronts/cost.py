"""What planning costs on large groups: time on one core and memory, in a process of its own.

`python -m tests.bench.fronts.cost POLICY RANKS SLOTS` prints one JSON object. Owns a load that
walks, so that every plan has work to do; needs neither peers nor recorded traces.
"""

import os
import resource
import statistics
import subprocess
import sys
import time

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd import Budget, Heat, Topology
from tests.bench.fronts.ours import Point, new
from tests.policies.asked import start

LAYERS, EXPERTS, STEPS, WINDOWS = 58, 256, 64, 6
TOKENS = 512
"""Per rank and step."""


class Cost(msgspec.Struct, frozen=True):
    """start_s: import and construction, with a compiled cache. first: from the initial layout.

    Times are of a plan of all layers; those without `first` are medians over the later windows.
    """

    policy: str
    ranks: int
    slots: int
    start_s: float
    first_cpu_ms: float
    cpu_ms: float
    wall_ms: float
    least_cpu_ms: float
    resident_mib: float


def measured(policy: str, ranks: int, slots: int) -> Cost:
    """Measure it in a child: the peak of memory is a process's own."""
    command = [sys.executable, "-m", "tests.bench.fronts.cost", policy, str(ranks), str(slots)]
    answer = subprocess.run(command, check=True, capture_output=True)
    return msgspec.json.decode(answer.stdout, type=Cost)


def walk(ranks: int) -> list[NDArray[np.int32]]:
    """Windows `[steps, layers, experts]` of a lognormal popularity that changes without a trend."""
    rng = np.random.default_rng(ranks)
    level = rng.normal(0.0, 1.0, (LAYERS, EXPERTS))
    offset = np.zeros((LAYERS, EXPERTS))
    windows = []
    for _ in range(WINDOWS):
        strides = []
        for _ in range(4):
            offset = 0.95 * offset + rng.normal(0.0, 0.2, level.shape)
            popularity = np.exp(level + offset)
            popularity /= popularity.sum(axis=1, keepdims=True)
            rate = popularity * TOKENS * ranks
            strides.append(rng.poisson(rate, (STEPS // 4, *rate.shape)).astype(np.int32))
        window = np.concatenate(strides)
        window.setflags(write=False)
        windows.append(window)
    return windows


def measure(name: str, ranks: int, slots: int) -> Cost:
    """Plan on every window, each from the plan before."""
    begun = time.perf_counter()
    policy = new(Point(name))
    start_s = time.perf_counter() - begun
    windows = walk(ranks)
    topology = Topology(ranks, slots, tuple(rank // 8 for rank in range(ranks)))
    budget, placement = Budget(None, None, 60.0, 1), start(LAYERS, EXPERTS, ranks, slots)
    cpu, wall = [], []
    for window in windows:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        placement = policy.propose(Heat(window, "all"), topology, placement, budget)
        cpu.append((time.process_time() - cpu_s) * 1e3)
        wall.append((time.perf_counter() - wall_s) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    later = statistics.median(cpu[1:]), statistics.median(wall[1:])
    return Cost(name, ranks, slots, start_s, cpu[0], *later, min(cpu[1:]), peak)


def main() -> None:
    """Measure on one core, where the system lets us choose."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    name, ranks, slots = sys.argv[1:]
    sys.stdout.buffer.write(msgspec.json.encode(measure(name, int(ranks), int(slots))))


if __name__ == "__main__":
    main()
