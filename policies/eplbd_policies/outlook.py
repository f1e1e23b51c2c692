"""What the next window may bring, from this one: samples at the level that a forecast expects.

Owns the bridge from a window of heat to what a search is judged on, for all layers; compiled. It
must not know placements in force, moves or budgets. L, K, E and R as in `forecast` and `board`.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplbd_policies.board import POWER, Floats, Ints, compiled
from eplbd_policies.forecast import forecast, sample

RISK_LIMIT = 2.0
"""Beyond it a placement would be all insurance."""


class Outlook(NamedTuple):
    """A window's samples as seen, and as expected of the next one."""

    seen: Floats
    """`[L, K, E]` tokens per step."""
    heat: Floats
    """`[L, K, E]` the same at the expected level, and scaled: the mean rank load is 1."""
    weight: Floats
    """`[L, K]` of each sample, sum 1."""
    risk: Floats
    """`[L]` tax on uneven shares."""
    noise: Floats
    """`[L, E]` variance of a step."""
    mean: Floats
    """`[L]` tokens of the mean rank in a step; 0 for a layer without heat."""
    steps: int
    head: Floats
    """`[R]` head starts."""


def headstart(speed: tuple[float, ...]) -> Floats:
    """`[R]` what to count on each rank beforehand, of the mean rank load.

    Where all are even then, each carries in proportion to its speed, so that all take equally long.
    The fastest ranks have none.
    """
    part: Floats = np.array(speed) / np.mean(speed)
    head: Floats = part.max() - part
    return head


@compiled
def judge(heat: Floats, risk: float, level: Floats, weight: Floats) -> float:
    """Bring the samples `[K, E]` to the forecast level and to a sum of 1, in place.

    weight: `[K]`, out. level: `[E]`, scratch. Returns the tax on uneven shares: with independent
    relative errors e of experts, the mean of the p-norm over them grows with a load's squares as by
    (p - 1) / 2 x e^2.
    """
    samples, experts = heat.shape
    error = forecast(heat, level)
    mean = np.zeros(experts)
    for k in range(samples):
        for expert in range(experts):
            mean[expert] += heat[k, expert] / samples
    overall = mean.sum() / experts
    for k in range(samples):
        weight[k] = 0.0
        for expert in range(experts):
            if mean[expert] > 0:
                heat[k, expert] *= level[expert] / mean[expert]
            heat[k, expert] += 1e-9 * overall
            weight[k] += heat[k, expert]
    total = weight.sum()
    for k in range(samples):
        heat[k] /= max(weight[k], 1e-300)
        weight[k] /= max(total, 1e-300)
    return min(risk * error * (POWER - 1.0) / 2.0, RISK_LIMIT)


@compiled
def doubt(noise: Floats, slots: Ints, count: Ints, steps: int, mean: float) -> float:
    """What the hottest rank may carry above the mean by chance alone, relative to the mean.

    noise: `[E]` variance of a step. mean: tokens of the mean rank in a step. The expected maximum
    of R normal variables is below sqrt(2 ln R) of their deviations.
    """
    ranks, per_rank = slots.shape
    total = 0.0
    for rank in range(ranks):
        for slot in range(per_rank):
            expert = slots[rank, slot]
            total += noise[expert] / (count[expert] * count[expert])
    deviation = math.sqrt(total / ranks / steps) / max(mean, 1e-300)
    return deviation * math.sqrt(2.0 * math.log(max(ranks, 2)))


@compiled
def judge_all(outlook: Outlook, ranks: int, risk: float) -> None:
    """Fill what is expected from what was seen, in every layer that has heat."""
    layers, samples, experts = outlook.seen.shape
    level = np.empty(experts)
    for layer in range(layers):
        mean = outlook.seen[layer].sum() / samples / ranks
        outlook.mean[layer] = mean
        if mean <= 0:
            continue
        heat = outlook.heat[layer]
        heat[:] = outlook.seen[layer]
        outlook.risk[layer] = judge(heat, risk, level, outlook.weight[layer])
        heat *= ranks


def look_ahead(
    steps: NDArray[np.int32], head: Floats, *, samples: int, activation: float, risk: float
) -> Outlook:
    """The outlook of a window `[T, L, E]`, T at least 1, on at most so many samples.

    head: `[R]` head starts.
    """
    count, layers, experts = steps.shape
    samples = min(samples, count)
    seen, noise = np.empty((layers, samples, experts)), np.empty((layers, experts))
    sample(np.ascontiguousarray(steps), activation, seen, noise)
    outlook = Outlook(
        seen,
        np.zeros_like(seen),
        np.zeros((layers, samples)),
        np.zeros(layers),
        noise,
        np.zeros(layers),
        count,
        head,
    )
    judge_all(outlook, head.size, risk)
    return outlook
