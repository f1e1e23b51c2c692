"""What planning costs: the policy itself, the way to its process and back, and a cold start.

Shape of the figures: 58 layers x 256 experts on 32 ranks x 9 slots, a window of 512 steps. Best of
several repeats: the question is what the code costs, not what else the machine does.
"""

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from eplbd import config
from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement, par, rank_load
from eplbd.core.topology import Topology
from eplbd.runtime.policyhost import PolicyHost, Proposal
from eplbd_policies.greedy import Greedy

pytestmark = pytest.mark.slow

TOPOLOGY = Topology(32, 9, tuple(rank // 8 for rank in range(32)))
CURRENT = Placement.linear(58, 256, 32, 9)
BUDGET = Budget(None, None, 30.0, 1)


@pytest.fixture(scope="module")
def heat() -> Heat:
    rng = np.random.default_rng(0)
    tokens = rng.lognormal(0.0, 1.0, (58, 256))
    steps = rng.poisson(tokens * 50, (512, 58, 256)).astype(np.int32)
    steps.setflags(write=False)
    return Heat(steps, "all")


def best_s(function: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def test_greedy_plans_a_large_model(heat: Heat) -> None:
    policy = Greedy(Greedy.Options())
    total_s = best_s(lambda: heat.total)
    plan_s = best_s(lambda: policy.propose(heat, TOPOLOGY, CURRENT, BUDGET))
    answer = policy.propose(heat, TOPOLOGY, CURRENT, BUDGET)
    before, after = (par(rank_load(p, heat.total)).mean() for p in (CURRENT, answer))
    print(
        f"\ngreedy: {plan_s * 1e3:.0f} ms, {plan_s / total_s:.1f} times the sum of its window "
        f"({total_s * 1e3:.0f} ms); PAR {before:.3f} -> {after:.4f}"
    )
    assert plan_s < 0.5


@pytest.mark.anyio
async def test_the_way_to_the_child_and_its_start(heat: Heat) -> None:
    numpy = [sys.executable, "-c", "import numpy"]
    numpy_s = best_s(lambda: subprocess.run(numpy, check=True), 3)  # alone here
    start = time.perf_counter()
    async with PolicyHost(config.Policy(name="greedy"), config.Plugins()) as host:
        start_s = time.perf_counter() - start
        ways = []
        for _ in range(5):
            answer = await host.propose(heat, TOPOLOGY, CURRENT, BUDGET)
            assert isinstance(answer, Proposal)
            ways.append((answer.elapsed_s - answer.duration_s, answer.duration_s))
    way_s, policy_s = min(ways)
    print(
        f"\nchild: cold start {start_s:.2f} s, {start_s / numpy_s:.1f} times an interpreter with "
        f"numpy ({numpy_s:.2f} s); {heat.steps.nbytes / 1e6:.0f} MB there and the answer back "
        f"{way_s * 1e3:.0f} ms, {way_s / policy_s:.1f} times the policy ({policy_s * 1e3:.0f} ms)"
    )
    assert start_s < 2.0
