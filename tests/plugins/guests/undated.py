"""A policy that does not state its API version."""

import eplbd


class Undated:
    name = "undated"

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
    register(Undated)  # type: ignore[arg-type]
