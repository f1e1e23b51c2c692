"""A policy for a later API."""

import eplbd


class Future:
    name = "future"
    eplbd_api = 2

    def propose(
        self,
        heat: eplbd.Heat,
        topology: eplbd.Topology,
        current: eplbd.Placement,
        budget: eplbd.Budget,
    ) -> eplbd.Placement:
        return current


@eplbd.hookimpl
def eplbd_register_policies(register: eplbd.Register) -> None:
    register(Future)
