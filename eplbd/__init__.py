"""Expert-parallel load balancing as a per-node daemon: the names that plugin authors import.

A policy is a class with `propose`; a plugin is a module that registers it. `plugins/README.md` is
the manual, `eplbd.hookspecs` the reference, `eplbd.testing.check_policy` the conformance kit.
"""

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement, even_shares, par, rank_load
from eplbd.core.plan import align
from eplbd.core.topology import Link, Topology
from eplbd.errors import EplbdError, PlacementError, PolicyError
from eplbd.hookspecs import Policy, Register, hookimpl

__all__ = [
    "Budget",
    "EplbdError",
    "Heat",
    "Link",
    "Placement",
    "PlacementError",
    "Policy",
    "PolicyError",
    "Register",
    "Topology",
    "align",
    "even_shares",
    "hookimpl",
    "par",
    "rank_load",
]
