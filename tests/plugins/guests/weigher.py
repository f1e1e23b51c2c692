"""A policy that makes sense only with shares: of two replicas the first takes three quarters."""

import numpy as np

import eplbd


class Weigher:
    name = "weigher"
    eplbd_api = 1
    needs = frozenset({"shares"})

    def propose(
        self,
        heat: eplbd.Heat,
        topology: eplbd.Topology,
        current: eplbd.Placement,
        budget: eplbd.Budget,
    ) -> eplbd.Placement:
        if not budget.weighted:
            raise RuntimeError("asked where there are no shares")
        if current.shares is not None:
            return current
        shares = eplbd.even_shares(current)
        for layer, expert in np.argwhere(current.replicas() == 2):
            shares[layer][current.slots[layer] == expert] = (0.75, 0.25)
        return eplbd.Placement(current.slots, current.experts, shares)


@eplbd.hookimpl
def eplbd_register_policies(register: eplbd.Register) -> None:
    register(Weigher)
