"""A policy from its offer: its options checked, made as often as wanted, warmed up.

Owns what every host of policies does before the first question. It must not know where a policy
runs, nor what becomes of its answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError
from eplbd.hookspecs import Policy
from eplbd.plugins import Offer
from eplbd.sources import near


class OptionError(ConfigError):
    """An option is unknown or out of bounds. `option` is its name; empty where it is the whole."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(reason)
        self.option = option


def maker(offer: Offer, given: Mapping[str, object], *, where: str) -> Callable[[], Policy]:
    """What makes the policy with these options.

    Args:
        offer: the policy.
        given: what its operator wrote.
        where: the place of the options, for errors.

    Raises:
        OptionError: one is unknown, of a wrong type, out of bounds or missing.
    """
    make: Callable[..., Policy] = offer.policy
    declared: type[msgspec.Struct] | None = getattr(offer.policy, "Options", None)
    fields = msgspec.structs.fields(declared) if declared is not None else ()
    known = {option.encode_name: option.type for option in fields}
    for name, value in given.items():
        if name not in known:
            hint = near(name, known) or f"; known: {', '.join(known) or 'none'}"
            reason = f"{where}.{name}: `{offer.name}` has no such option{hint}"
            raise OptionError(name, reason)
        try:
            msgspec.convert(value, known[name])
        except msgspec.ValidationError as error:
            raise OptionError(name, f"{where}.{name}: {error}, got {value!r}") from None
    if declared is None:
        return make
    try:
        return functools.partial(make, msgspec.convert(dict(given), declared))
    except msgspec.ValidationError as error:  # one is missing, or the struct's own checks
        raise OptionError("", f"{where}: `{offer.name}`: {error}") from None


def warmed(make: Callable[[], Policy], needs: frozenset[str]) -> Policy:
    """A policy whose imports and compilation are over with.

    Another one has proposed for a small made-up problem; what it may remember of that is gone with
    it. Raises whatever the policy raises.
    """
    steps = np.arange(3 * 2 * 8, dtype=np.int32).reshape(3, 2, 8)
    steps.setflags(write=False)
    current = Placement.linear(2, 8, 2, 5)
    budget = Budget(None, None, deadline_s=30.0, expert_bytes=1, weighted="shares" in needs)
    make().propose(Heat(steps, "all"), Topology.single_node(2, 5), current, budget)
    return make()
