"""A policy whose construction does not end."""

import eplbd


class Stuck:
    name = "stuck"
    eplbd_api = 1

    def __init__(self) -> None:
        while True:
            pass

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
    register(Stuck)
