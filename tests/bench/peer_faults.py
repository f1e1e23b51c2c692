"""The tests of what peers get wrong, asked of the peers: `python -m tests.bench.peer_faults`.

Each fault is a test of `tests.policies.test_faults` and a peer that must fail it, in a process of
its own: one of them corrupts its heap. A test that its peer passes proves nothing about ours.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eplbd import Budget, Heat, Placement, Topology
from tests.bench.fronts.ours import Nodes
from tests.bench.fronts.unpack import REPOSITORY, peers
from tests.bench.fronts.yardstick import Yardstick, shared
from tests.policies import asked, test_faults

TIMEOUT_S = 400
"""A peer that compiles takes a minute of an idle machine."""
PASSED = "passed"


class Stranger:
    """A peer's policy behind our interface; what it raises and answers is its own."""

    name = "stranger"
    eplbd_api = 1

    def __init__(self, yardstick: Yardstick, peer: str) -> None:
        self._solve = yardstick.maker(peer)()

    def propose(self, heat: Heat, topology: Topology, current: Placement, _: Budget) -> Placement:
        """Ask as the shared bench does."""
        ranks, slots = topology.ranks, topology.slots_per_rank
        nodes = Nodes(nodes=1, groups=1, devices_per_node=ranks)
        answer = self._solve(heat.steps, current.slots.astype(np.int64), ranks, slots, nodes)
        return Placement(np.asarray(answer, np.int32), current.experts)


Test = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Fault:
    """A test and a peer that fails it; `args` are the test's beside the policy."""

    peer: str
    test: Test
    args: tuple[object, ...] = ()

    @property
    def title(self) -> str:
        """For a table."""
        words = self.test.__name__.removeprefix("test_").replace("_", " ")
        return " ".join([f"{self.peer}: {words}", *map(str, self.args)])


def _same(*peer_names: str, tests: tuple[Test, ...]) -> list[Fault]:
    return [Fault(peer, test) for peer in peer_names for test in tests]


SHAPES = test_faults.SHAPES
FAULTS = (
    *_same(
        "vllm",
        "sglang",
        tests=(
            test_faults.test_one_hot_expert_is_shared_by_all_ranks,
            test_faults.test_no_heat_piles_no_copies_on_one_expert,
            test_faults.test_a_percent_of_noise_moves_little,
            test_faults.test_ranks_that_changed_names_keep_what_they_hold,
            test_faults.test_of_300_small_problems_none_is_answered_invalidly,
        ),
    ),
    Fault("sglang-vec", test_faults.test_of_300_small_problems_none_is_answered_invalidly),
    Fault("ascend-random", test_faults.test_every_shape_is_served, (SHAPES["two ranks"],)),
    Fault("ascend-random", test_faults.test_of_300_small_problems_none_is_answered_invalidly),
    Fault(
        "ascend-default",
        test_faults.test_every_shape_is_served,
        (SHAPES["more redundant slots than ranks"],),
    ),
    Fault("ascend-default", test_faults.test_loads_that_leave_the_last_rank_no_choice),
    Fault("ascend-default", test_faults.test_of_300_small_problems_none_is_answered_invalidly),
    Fault("ascend-swift", test_faults.test_a_cold_first_layer_does_not_stop_the_others, (0.0,)),
    Fault("ascend-swift", test_faults.test_a_cold_first_layer_does_not_stop_the_others, (0.1,)),
    Fault("ascend-swift", test_faults.test_copies_that_lie_on_the_last_ranks_are_spread),
    Fault("ascend-flashlb", test_faults.test_one_hot_expert_is_shared_by_all_ranks),
    Fault("ascend-flashlb", test_faults.test_windows_of_other_lengths_before_change_nothing),
)


def ask(fault: Fault) -> str:
    """What came of it, in a process of its own: `PASSED`, or how it failed."""
    command = [sys.executable, "-m", "tests.bench.peer_faults", str(FAULTS.index(fault))]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode < 0:
        return f"died of signal {-done.returncode}"
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]


def main() -> None:
    """Play the fault of that number here, or all of them, each in its own process."""
    if len(sys.argv) == 1:
        for fault in FAULTS:
            print(f"{fault.title}: {ask(fault)}", flush=True)
        return
    fault = FAULTS[int(sys.argv[1])]
    yardstick = Yardstick(shared(), peers())
    asked.STRANGERS["stranger"] = lambda: Stranger(yardstick, fault.peer)
    try:
        fault.test("stranger", *fault.args)
    except Exception as error:  # noqa: BLE001 (however it fails, it fails)
        reason = str(error).splitlines() or [""]
        print(f"{type(error).__name__}: {reason[0][:80]}")
    else:
        print(PASSED)


if __name__ == "__main__":
    main()
