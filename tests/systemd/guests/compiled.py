"""A policy that is compiled when it is made, and takes longer for it than a unit's timeout."""

import time

import numba
import numpy as np

import eplbd

START_S = 15.0
"""More than the timeout of the test; Python's own start is less, even on a busy machine."""


@numba.njit("int64(int64[:])", cache=True)
def hottest(load: np.ndarray) -> int:
    """Compiled as it is defined, and kept."""
    best = 0
    for index in range(load.size):
        if load[index] > load[best]:
            best = index
    return best


class Compiled:
    """Proposes what is there."""

    name = "compiled"
    eplbd_api = 1

    def __init__(self) -> None:
        time.sleep(START_S)
        hottest(np.arange(4))

    def propose(
        self,
        heat: eplbd.Heat,
        topology: eplbd.Topology,
        current: eplbd.Placement,
        budget: eplbd.Budget,
    ) -> eplbd.Placement:
        return current


@eplbd.hookimpl
def eplbd_register_policies(register: object) -> None:
    """Offer it."""
    register(Compiled)  # type: ignore[operator]
