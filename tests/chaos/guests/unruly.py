"""A policy that behaves during its warm-up and never again, as its option says."""

import msgspec
import numpy as np

import eplbd
from tests.plugins.guests.faulty import FAULTS

WARM_UP_RANKS = 2


def forgets_an_expert(current: eplbd.Placement) -> eplbd.Placement:
    """Of the right shape and type, and expert 0 is nowhere."""
    slots = current.slots.copy()
    slots[slots == 0] = 1
    return eplbd.Placement(slots, current.experts)


def names_experts_that_are_none(current: eplbd.Placement) -> eplbd.Placement:
    return eplbd.Placement(np.full_like(current.slots, 2**31 - 1), current.experts)


def splits_unasked(current: eplbd.Placement) -> eplbd.Placement:
    """Shares, all of them for the first replica, where the engine takes none."""
    shares = eplbd.even_shares(current)
    for layer, expert in np.argwhere(current.replicas() > 1):
        own = np.flatnonzero(current.slots[layer] == expert)
        shares[layer].flat[own] = np.arange(len(own)) == 0
    return eplbd.Placement(current.slots, current.experts, shares)


MISDEEDS = {
    **FAULTS,
    "forgets_an_expert": forgets_an_expert,
    "names_experts_that_are_none": names_experts_that_are_none,
    "splits_unasked": splits_unasked,
}


class Unruly:
    """One misdeed, at every question that is meant."""

    name = "unruly"
    eplbd_api = 1

    class Options(msgspec.Struct):
        """One of `MISDEEDS`."""

        fault: str

    def __init__(self, options: Options) -> None:
        self._misdeed = MISDEEDS[options.fault]

    def propose(
        self,
        heat: eplbd.Heat,
        topology: eplbd.Topology,
        current: eplbd.Placement,
        budget: eplbd.Budget,
    ) -> eplbd.Placement:
        if topology.ranks == WARM_UP_RANKS:
            return current
        return self._misdeed(current)  # type: ignore[return-value]  # that is the point


@eplbd.hookimpl
def eplbd_register_policies(register: eplbd.Register) -> None:
    register(Unruly)
