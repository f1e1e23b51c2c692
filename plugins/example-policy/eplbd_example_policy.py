"""In every layer, the hottest rank's hottest expert for the coldest rank's coldest, if it helps."""

from eplbd import Budget, Heat, Placement, Register, Topology, hookimpl, rank_load


class Example:
    """The smallest policy that is good for something; `plugins/README.md` explains each line."""

    name, eplbd_api = "example", 1

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """At most one exchange per layer."""
        slots, share = current.slots.copy(), heat.total / current.replicas()
        for layer, load in enumerate(rank_load(current, heat.total)):
            hot, cold = slots[layer, load.argmax()], slots[layer, load.argmin()]
            i, j = share[layer, hot].argmax(), share[layer, cold].argmin()
            cut = share[layer, hot[i]] - share[layer, cold[j]]
            if 0 < cut < load.max() - load.min() and hot[i] not in cold and cold[j] not in hot:
                hot[i], cold[j] = cold[j], hot[i]
        proposal = Placement(slots, current.experts)
        return proposal if budget.allows(current, proposal) else current


@hookimpl
def eplbd_register_policies(register: Register) -> None:
    """Offer it."""
    register(Example)
