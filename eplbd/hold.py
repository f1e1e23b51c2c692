"""The policy that is always there: keep the placement. A plugin like any other, without options.

Owns nothing. A bare daemon starts with it, and it takes over from a policy that is suspended.
"""

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.hookspecs import Register, hookimpl


class Hold:
    """Propose nothing."""

    name = "hold"
    eplbd_api = 1

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """Return `current`."""
        return current


@hookimpl
def eplbd_register_policies(register: Register) -> None:
    """Offer `hold`."""
    register(Hold)
