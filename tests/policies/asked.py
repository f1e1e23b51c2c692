"""Asking policies: which there are, what each one claims, and made-up questions for them.

Policies are found by the entry points of the distribution, so that a new one is tested by being
there. What one of them cannot claim by its nature is data, `DISCLAIMED`.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Policy, Topology
from eplbd.plugins import Catalogue, installed

PLUGINS = [plugin for plugin in installed() if plugin.distribution == "eplbd-policies"]
FREE = Budget(None, None, 10.0, 1000)

BALANCES = "balances"
STILL = "still"
DISCLAIMED = {
    ("random", BALANCES): "it does not look at the heat",
    ("random", STILL): "it goes somewhere else each time",
}

STRANGERS: dict[str, Callable[[], Policy]] = {}
"""Policies that are no plugins, for who asks the same questions of others."""


def claiming(claim: str | None = None) -> list[object]:
    """Every policy as a parameter; skipped, with the reason, where it disclaims."""
    parameters: list[object] = []
    for name in sorted(plugin.name for plugin in PLUGINS):
        reason = DISCLAIMED.get((name, claim or ""))
        marks = [pytest.mark.skip(reason=f"{name}: {reason}")] if reason else []
        parameters.append(pytest.param(name, marks=marks))
    return parameters


@cache
def fresh(name: str) -> Policy:
    """An instance with default options; policies keep no state, so one serves all tests."""
    return new(name)


def new(name: str) -> Policy:
    """An instance of its own."""
    if name in STRANGERS:
        return STRANGERS[name]()
    policy = Catalogue(PLUGINS).find(name).policy
    options = getattr(policy, "Options", None)
    return policy() if options is None else policy(options())  # type: ignore[call-arg]


def start(layers: int, experts: int, ranks: int, slots: int) -> Placement:
    """Experts in order, then copies from the last rank on, none twice on a rank."""
    rows = np.full((ranks, slots), -1, np.int32)
    for rank, held in enumerate(np.array_split(np.arange(experts, dtype=np.int32), ranks)):
        rows[rank, : held.size] = held
    copy = 0
    for rank, slot in reversed(list(zip(*np.nonzero(rows < 0), strict=True))):
        while copy % experts in rows[rank]:
            copy += 1
        rows[rank, slot] = copy % experts
        copy += 1
    return Placement(np.repeat(rows[None], layers, axis=0), experts)


def counts(
    layers: int, experts: int, steps: int = 64, sigma: float = 1.0, seed: int = 0
) -> NDArray[np.int32]:
    """`[steps, layers, experts]` around a lognormal popularity that does not change."""
    rng = np.random.default_rng(seed)
    popularity = rng.lognormal(0, sigma, (layers, experts))
    popularity /= popularity.sum(1, keepdims=True)
    return rng.poisson(popularity * 20_000, (steps, layers, experts)).astype(np.int32)


def ask(policy: Policy, steps: NDArray[np.integer], current: Placement) -> Placement:
    """The policy's answer on one node, without a budget."""
    heat = np.ascontiguousarray(steps, np.int32)
    heat.setflags(write=False)
    topology = Topology.single_node(current.ranks, current.slots_per_rank)
    return policy.propose(Heat(heat, "all"), topology, current, FREE)


def moved(current: Placement, answer: Placement) -> float:
    """Experts newly hosted by a rank, mean over layers."""
    return float(answer.moves_from(current).mean())
