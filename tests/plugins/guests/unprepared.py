"""A policy that fails the warm-up."""

import eplbd


class Unprepared:
    name = "unprepared"
    eplbd_api = 1

    def propose(
        self,
        heat: eplbd.Heat,
        topology: eplbd.Topology,
        current: eplbd.Placement,
        budget: eplbd.Budget,
    ) -> eplbd.Placement:
        raise ValueError("not for such a small problem")


@eplbd.hookimpl
def eplbd_register_policies(register: eplbd.Register) -> None:
    register(Unprepared)
