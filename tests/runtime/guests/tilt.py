"""A policy that gives the hottest expert of each layer a replica on the coldest rank."""

import numpy as np

import eplbd


class Tilt:
    """Replaces the coldest redundant replica; proposes what it proposed once that is in force."""

    name = "tilt"
    eplbd_api = 1

    def propose(
        self,
        heat: eplbd.Heat,
        topology: eplbd.Topology,
        current: eplbd.Placement,
        budget: eplbd.Budget,
    ) -> eplbd.Placement:
        slots = current.slots.copy()
        for layer, experts in enumerate(heat.total):
            hot = int(experts.argmax())
            counts = np.bincount(slots[layer].ravel(), minlength=current.experts)
            for rank in range(topology.ranks):
                row = slots[layer, rank]
                spare = [i for i, expert in enumerate(row) if counts[expert] > 1 and expert != hot]
                if hot not in row and spare:
                    slots[layer, rank, min(spare, key=lambda i: int(experts[row[i]]))] = hot
                    break
        return eplbd.Placement(slots, current.experts)


@eplbd.hookimpl
def eplbd_register_policies(register: object) -> None:
    """Offer it."""
    register(Tilt)  # type: ignore[operator]
