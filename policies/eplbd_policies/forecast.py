"""The next window's heat from this one's: samples, their noise, and a level found by back-test.

Owns what of a window is signal. Compiled, in plain loops and in a fixed order, so that every
machine finds the same figures. It must not know placements. T, L, E and K are the numbers of steps,
layers, experts and samples.
"""

import numpy as np
from numpy.typing import NDArray

from eplbd_policies.board import Floats, compiled

SAMPLES = 16
"""Averages of neighbouring steps: few enough to search on, enough to see who is hot together."""
TESTED = 8
"""Samples below which a window is too short to be split into a past and a future."""
UNTESTED = 0.02
"""Squared relative error that is assumed where there is no back-test."""
MARGIN = 0.9
"""A forecaster replaces the plain mean only if its error is at most this part of the mean's."""
DAMPING = 0.9
"""Of a trend: what has gone on for a window rarely goes on for a whole further one."""
FORECASTERS = 4
MEAN, RECENT, NEWEST, TREND = range(FORECASTERS)


@compiled
def sample(steps: NDArray[np.int32], activation: float, heat: Floats, noise: Floats) -> None:
    """Average the steps of a window, in one pass over it.

    steps: `[T, L, E]` tokens. activation: further tokens that an expert counts for in each step in
    which it has any. heat: `[L, K, E]`, out: mean per step. noise: `[L, E]`, out: variance of one
    step around its neighbours, which unlike the window's is free of drift (von Neumann, 1941), and
    not below that of independent tokens (Poisson).
    """
    count, layers, experts = steps.shape
    samples = heat.shape[1]
    heat[:] = 0.0
    noise[:] = 0.0
    for layer in range(layers):
        for k in range(samples):
            first, end = k * count // samples, (k + 1) * count // samples
            for step in range(first, end):
                for expert in range(experts):
                    tokens = steps[step, layer, expert]
                    if tokens > 0:
                        heat[layer, k, expert] += tokens + activation
            for expert in range(experts):
                heat[layer, k, expert] /= end - first
        for step in range(1, count):
            for expert in range(experts):
                change = float(steps[step, layer, expert]) - float(steps[step - 1, layer, expert])
                noise[layer, expert] += change * change
        for expert in range(experts):
            mean = 0.0
            for k in range(samples):
                mean += heat[layer, k, expert] / samples
            noise[layer, expert] = max(noise[layer, expert] / (2.0 * max(count - 1, 1)), mean)


@compiled
def level(heat: Floats, forecaster: int, out: Floats) -> None:
    """Expected mean of as many further samples as `heat` `[K, E]` has, into `out` `[E]`."""
    samples, experts = heat.shape
    out[:] = 0.0
    weight, total = 1.0, 0.0
    fade = 1.0
    if forecaster == RECENT:
        fade = 0.5 ** (4.0 / samples)
    if forecaster == NEWEST:
        fade = 0.5 ** (10.0 / samples)
    for k in range(samples - 1, -1, -1):
        for expert in range(experts):
            out[expert] += weight * heat[k, expert]
        total += weight
        weight *= fade
    for expert in range(experts):
        out[expert] /= total
    if forecaster == TREND:
        middle = (samples - 1) / 2.0
        spread = samples * (samples * samples - 1) / 12.0
        for expert in range(experts):
            slope = 0.0
            for k in range(samples):
                slope += (k - middle) * heat[k, expert]
            ahead = out[expert] + DAMPING * samples * slope / spread
            out[expert] = min(max(ahead, out[expert] / 3.0), out[expert] * 3.0)


@compiled
def forecast(heat: Floats, out: Floats) -> float:
    """Level of the next window by the forecaster that would have served this one best.

    heat: `[K, E]`. out: `[E]`. Returns the squared relative error in the back-test: the first half
    of the samples foretells the second. Where there is no back-test, the mean
    and `UNTESTED`.
    """
    samples, experts = heat.shape
    if samples < TESTED:
        level(heat, MEAN, out)
        return UNTESTED
    past, future = heat[: samples // 2], heat[samples // 2 :]
    truth = np.empty(experts)
    level(future, MEAN, truth)
    size = 0.0
    for expert in range(experts):
        size += truth[expert] * truth[expert]
    best, least, chosen = np.inf, 0.0, MEAN
    for forecaster in range(FORECASTERS):
        level(past, forecaster, out)
        error = 0.0
        for expert in range(experts):
            error += (out[expert] - truth[expert]) * (out[expert] - truth[expert])
        error /= max(size, 1e-300)
        handicapped = error if forecaster == MEAN else error / MARGIN
        if handicapped < best:
            best, least, chosen = handicapped, error, forecaster
    level(heat, chosen, out)
    return least
