"""What other engines' policies were found to get wrong, one test each; ours must get it right.

Each input makes at least one published policy crash, answer invalidly, or leave untouched what can
be balanced. Nothing here is about one policy: what a policy does not claim is in `asked`.
"""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from eplbd import Placement, Topology, par, rank_load
from eplbd.core.placement import validate
from tests.policies.asked import (
    BALANCES,
    PLUGINS,
    STILL,
    ask,
    claiming,
    counts,
    fresh,
    moved,
    new,
    start,
)

every = pytest.mark.parametrize("name", claiming())
balancing = pytest.mark.parametrize("name", claiming(BALANCES))
still = pytest.mark.parametrize("name", claiming(STILL))

SHAPES = {  # layers, experts, ranks, slots per rank
    "two ranks": (4, 8, 2, 5),
    "odd sizes": (4, 30, 7, 5),
    "six experts": (4, 6, 4, 2),
    "more redundant slots than ranks": (4, 32, 8, 8),
    "no redundant slots": (4, 32, 8, 4),
}


def window_par(placement: Placement, steps: np.ndarray) -> np.ndarray:
    """PAR of each layer, of the sum over the window."""
    return par(rank_load(placement, steps.sum(0, dtype=np.int64)))


def step_par(placement: Placement, steps: np.ndarray) -> np.ndarray:
    """PAR of each layer as synchronous steps pay it."""
    load = rank_load(placement, steps)
    return np.asarray(load.max(-1).sum(0) / np.maximum(load.mean(-1).sum(0), 1e-9))


def valid(placement: Placement) -> Placement:
    topology = Topology.single_node(placement.ranks, placement.slots_per_rank)
    return validate(
        placement.slots, experts=placement.experts, topology=topology, layers=placement.layers
    )


@balancing
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_every_shape_is_served(name: str, shape: tuple[int, int, int, int]) -> None:
    steps, current = counts(*shape[:2]), start(*shape)
    answer = valid(ask(fresh(name), steps, current))
    assert (window_par(answer, steps) <= window_par(current, steps) + 1e-9).all()
    assert window_par(answer, steps).mean() < 1 + 0.4 * (window_par(current, steps).mean() - 1)


@balancing
def test_one_hot_expert_is_shared_by_all_ranks(name: str) -> None:
    """More replicas than ranks are useless; a replica per rank is perfect."""
    steps = np.ones((64, 4, 8), np.int32)
    steps[:, :, 0] = 100_000
    answer = valid(ask(fresh(name), steps, start(4, 8, 4, 6)))
    assert (answer.replicas()[:, 0] == 4).all()
    assert window_par(answer, steps).max() < 1.005


@balancing
def test_no_heat_piles_no_copies_on_one_expert(name: str) -> None:
    current = start(4, 32, 8, 5)
    answer = valid(ask(fresh(name), np.zeros((64, 4, 32), np.int32), current))
    assert answer.replicas().max() == 2


@balancing
@pytest.mark.parametrize("part", [0.0, 0.1], ids=["no heat", "a tenth of the heat"])
def test_a_cold_first_layer_does_not_stop_the_others(name: str, part: float) -> None:
    steps = counts(4, 32)
    steps[:, 0] = (steps[:, 0] * part).astype(np.int32)
    current = start(4, 32, 8, 5)
    assert window_par(current, steps)[1:].mean() > 1.5
    assert window_par(ask(fresh(name), steps, current), steps)[1:].max() < 1.15


@balancing
def test_copies_that_lie_on_the_last_ranks_are_spread(name: str) -> None:
    current = Placement.linear(4, 64, 16, 5)
    steps = counts(4, 64, sigma=0.5, seed=4)
    assert (ask(fresh(name), steps, current).replicas().max(1) <= 16).all()
    before, after = window_par(current, steps), window_par(ask(fresh(name), steps, current), steps)
    assert (after - 1 < 0.25 * (before - 1)).all()


@balancing
def test_a_placement_with_a_duplicate_is_no_trap(name: str) -> None:
    slots = start(4, 32, 8, 5).slots.copy()
    slots[:, 0, -1] = slots[:, 0, 0]
    current, steps = Placement(slots, 32), counts(4, 32)
    assert window_par(current, steps).mean() > 1.5
    assert window_par(ask(fresh(name), steps, current), steps).max() < 1.15


@every
def test_loads_that_leave_the_last_rank_no_choice(name: str) -> None:
    """Every rank with room holds the expert already: neither an overfull rank nor an error."""
    steps = np.array([40, 70, 90, 60, 80, 70, 70, 40], np.int32)[None, None]
    valid(ask(fresh(name), steps, start(1, 8, 4, 3)))


@balancing
def test_counts_may_sum_beyond_32_bits(name: str) -> None:
    steps = (counts(4, 32).astype(np.int64) * 40_000).clip(max=2**31 - 1)
    current = start(4, 32, 8, 5)
    answer = valid(ask(fresh(name), steps, current))
    assert window_par(answer, steps).max() < 1.15


@every
def test_windows_of_other_lengths_before_change_nothing(name: str) -> None:
    steps, current = counts(4, 32), start(4, 32, 8, 5)
    used = new(name)
    for length in (1, 32, 64, 3):
        ask(used, steps[:length], current)
    assert ask(used, steps, current) == ask(new(name), steps, current)


@every
def test_the_same_question_has_the_same_answer(name: str) -> None:
    steps, current = counts(8, 64), start(8, 64, 16, 5)
    answers = [ask(policy, steps, current) for policy in (fresh(name), fresh(name), new(name))]
    assert answers[0] == answers[1] == answers[2]


@still
def test_the_same_heat_again_moves_nothing(name: str) -> None:
    steps = counts(16, 64)
    placed = ask(fresh(name), steps, start(16, 64, 16, 5))
    assert ask(fresh(name), steps, placed) == placed


@still
def test_a_percent_of_noise_moves_little(name: str) -> None:
    total = counts(16, 64).sum(0)
    noisy = total * (1 + 0.01 * np.random.default_rng(1).standard_normal(total.shape))
    first = np.repeat(total[None] // 64, 64, axis=0)
    again = np.repeat((noisy // 64)[None], 64, axis=0)
    placed = ask(fresh(name), first, start(16, 64, 16, 5))
    assert moved(placed, ask(fresh(name), again, placed)) <= 0.08 * 16 * 5


@still
def test_ranks_that_changed_names_keep_what_they_hold(name: str) -> None:
    steps = counts(16, 64)
    placed = ask(fresh(name), steps, start(16, 64, 16, 5))
    renamed = Placement(np.roll(placed.slots, 1, axis=1), 64)
    assert moved(renamed, ask(fresh(name), steps, renamed)) <= 0.08 * 16 * 5


def small_problems() -> Iterator[tuple[np.ndarray, Placement]]:
    """300 heats and placements, many of them extreme."""
    rng = np.random.default_rng(0)
    for seed in range(300):
        ranks, experts = int(rng.integers(2, 17)), int(rng.integers(8, 65))
        slots = min(int(-(-experts // ranks) + rng.integers(0, 3)), experts)
        sigma = float(rng.choice([0.3, 1, 2, 3]))
        yield counts(2, experts, 16, sigma, seed), start(2, experts, ranks, slots)


@pytest.mark.slow
@every
def test_of_300_small_problems_none_is_answered_invalidly(name: str) -> None:
    for steps, current in small_problems():
        valid(ask(fresh(name), steps, current))


@pytest.mark.slow
@balancing
def test_of_300_small_problems_none_gets_slower(name: str) -> None:
    for steps, current in small_problems():
        answer = ask(fresh(name), steps, current)
        worse = window_par(answer, steps) > window_par(current, steps) + 1e-9
        slower = step_par(answer, steps) > step_par(current, steps) + 1e-9
        assert not (worse & slower).any()


@pytest.mark.slow
@every
def test_importing_it_needs_no_accelerator(name: str) -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'torch_npu', 'vllm')));"
        "import importlib; importlib.import_module(sys.argv[1])"
    )
    module = next(plugin.module for plugin in PLUGINS if plugin.name == name)
    subprocess.run([sys.executable, "-c", script, module], check=True, timeout=100)
