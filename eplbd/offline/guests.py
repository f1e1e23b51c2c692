"""Policies for the offline tools: found as the daemon finds them, asked in this process.

Owns the judgement of an answer: validated whole, held to its budget, repaired by nobody. A failure
is a sentence, not a crash. Must not know traces or scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement, validate
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, PlacementError
from eplbd.hookspecs import Policy
from eplbd.making import maker, warmed
from eplbd.offline.measure import moved
from eplbd.plugins import Catalogue, needs_of, selected
from eplbd.sources import near


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question. failure: empty, or why `placement` is the one before."""

    placement: Placement
    seconds: float
    failure: str = ""


@dataclass(slots=True)
class Guest:
    """A policy by name. Made when first asked, warmed up beforehand, made anew after it raised."""

    name: str
    make: Callable[[], Policy]
    needs: frozenset[str] = frozenset()
    _policy: Policy | None = field(default=None, init=False)

    def ask(self, heat: Heat, topology: Topology, current: Placement, budget: Budget) -> Answer:
        """Ask for a placement; a failure of any kind keeps `current`."""
        started = time.perf_counter()
        try:
            if self._policy is None:
                self._policy = warmed(self.make, self.needs)
            started = time.perf_counter()
            proposal: object = self._policy.propose(heat, topology, current, budget)
        except Exception as error:  # noqa: BLE001  # a stranger's code, supervised
            self._policy = None
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            return Answer(current, time.perf_counter() - started, reason)
        seconds = time.perf_counter() - started
        try:
            return Answer(_judged(proposal, topology, current, budget), seconds)
        except PlacementError as error:
            return Answer(current, seconds, str(error))


def _judged(proposal: object, topology: Topology, current: Placement, budget: Budget) -> Placement:
    if not isinstance(proposal, Placement):
        kind = type(proposal).__name__
        raise PlacementError(f"propose() returned {kind}, expected eplbd.Placement")
    if proposal.shares is not None and not budget.weighted:
        raise PlacementError("shares per replica, which the budget does not allow")
    placed = validate(
        proposal.slots,
        experts=current.experts,
        topology=topology,
        layers=current.layers,
        allow_duplicates=current.has_duplicates,
        shares=proposal.shares,
    )
    moves = moved(current, placed)
    for limit, cost, unit in (
        (budget.moves, moves, "moves"),
        (budget.bytes, moves * budget.expert_bytes, "bytes"),
    ):
        if limit is not None and cost > limit:
            raise PlacementError(f"needs {cost} {unit}, allowed are {limit}")
    return placed


def invite(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, object]] | None = None,
    *,
    enabled: Sequence[str] = ("*",),
    modules: Sequence[str] = (),
) -> list[Guest]:
    """The policies of these names, each once, in order.

    Args:
        names: policies, or vllm-ascend's numbers.
        options: by policy, what would stand in `[policy.options]`.
        enabled: as `plugins.enabled`.
        modules: as `plugins.modules`.

    Raises:
        ConfigError: an unknown policy or option, with near matches.
        PolicyError: the plugin of that name cannot be loaded.
    """
    catalogue = Catalogue(selected(enabled, modules))
    offers = {offer.name: offer for offer in map(catalogue.find, names)}
    given = dict(options or {})
    for name in given:
        if name not in offers:
            raise ConfigError(f"options for `{name}`, which is not simulated{near(name, offers)}")
    return [
        Guest(name, maker(offer, given.get(name, {}), where=name), needs_of(offer.policy))
        for name, offer in offers.items()
    ]
