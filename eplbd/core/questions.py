"""What policies are asked, and who is not asked any more.

Owns which answer belongs to which request, what came of each, and the suspension of a policy or
shadow that fails or does not keep its promises. Must not know peers nor the daemon's life.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from eplbd.core import beside
from eplbd.core.breaker import Breaker
from eplbd.core.events import Effect, Note, PolicyAnswered, PolicyFailed, RememberFault

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eplbd.core.balancer import Balancer
    from eplbd.core.settings import Settings

SUSPENDED = "policy suspended, hold takes over"

PAUSE = 2.0
"""Times what a look at the heat of one group took, before another's is looked at: one at a window
of a large model takes 20 ms, on a busy machine many times that, and there may be as many groups as
somebody says hello for. Sixty-four have their turns within an interval."""


class Questions:
    """Every question to the policy in charge and to its shadows, of all groups."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.asked: dict[int, str] = {}
        """Group of every question to the policy in charge; at most one is open."""
        self.aside: dict[int, tuple[str, str]] = {}
        """Group and policy of every question to a shadow."""
        self.breaker = Breaker(settings.policy.failures_until_suspended)
        self.suspended_for = ""
        """Why the policy is suspended; the newest reason once it is not any more."""
        self.shadow_breakers = _breakers(settings)
        self.results: Counter[tuple[str, str]] = Counter()
        """What came of questions, by policy and outcome: ok, or that of `PolicyFailed`."""
        self.out: list[Effect] = []
        self._request = 0
        self._looked: tuple[str, float] = ("", 0.0)
        """Whose heat was looked at last, and when; seconds."""
        self._rested = 0.0
        """When another's may be; unknown, infinite, until time has passed."""

    def drain(self) -> list[Effect]:
        """Return and forget what is to be done."""
        effects, self.out = self.out, []
        return effects

    def reconfigure(self, settings: Settings, balancers: Iterable[Balancer], *, anew: bool) -> None:
        """Take new settings; anew: whether what was suspended may be asked again."""
        self.settings = settings
        if anew:
            self.trust(balancers)
            self.shadow_breakers = _breakers(settings)

    def trust(self, balancers: Iterable[Balancer]) -> None:
        """Forget what the policy did wrong: it may be asked again."""
        self.breaker = Breaker(self.settings.policy.failures_until_suspended)
        for balancer in balancers:
            balancer.gains.forgive()

    # --- questions ------------------------------------------------------------------------------

    def in_turn(self, balancers: Iterable[Balancer]) -> list[Balancer]:
        """Who waits longest for a look at its heat comes first: one question is open at a time."""
        return sorted(balancers, key=lambda b: b.cycle.considered_at if b.cycle else 0.0)

    def ask(self, balancer: Balancer) -> None:
        """Let a group ask whatever it wants to know."""
        policy = self.settings.policy.name
        free = not self.breaker.suspended and not self.asked and self._may_look(balancer)
        if free and balancer.wants_policy(policy, self._request + 1):
            self._request += 1
            self.asked[self._request] = balancer.group.name
        if free and balancer.cycle and balancer.cycle.considered_at == balancer.now:
            self._took_look(balancer)
        shadow = beside.ask(balancer, self._request + 1)
        if shadow:
            self._request += 1
            self.aside[self._request] = (balancer.group.name, shadow)

    def _may_look(self, balancer: Balancer) -> bool:
        (name, at), now = self._looked, balancer.now
        if math.isinf(self._rested) and now > at:
            self._rested = now + PAUSE * (now - at)  # the look itself, and a tick at most
        return name == balancer.group.name or now >= self._rested

    def _took_look(self, balancer: Balancer) -> None:
        # One that looks again and again does not put the others off.
        if balancer.group.name != self._looked[0] or balancer.now >= self._rested:
            self._looked, self._rested = (balancer.group.name, balancer.now), math.inf

    def watch(self, balancer: Balancer) -> None:
        """Let those shadows live that are not suspended."""
        held = self.shadow_breakers.items()
        beside.watch(balancer, [name for name, breaker in held if not breaker.suspended])

    # --- answers --------------------------------------------------------------------------------

    def took(
        self, event: PolicyAnswered | PolicyFailed, balancers: Mapping[str, Balancer]
    ) -> Balancer | None:
        """Take what came of a question; whose it was, if that group is still led."""
        if event.request in self.aside:
            group, name = self.aside.pop(event.request)
            return self._took_aside(event, name, balancers.get(group))
        balancer = balancers.get(self.asked.pop(event.request, ""))
        if isinstance(event, PolicyFailed):
            self._at_fault(event.outcome, event.detail)
            if balancer is not None:
                balancer.refused(f"policy {event.outcome}", "failed", event.duration_s)
        elif balancer is not None and balancer.proposed(event):
            self.breaker.succeeded()
            self.results[self.settings.policy.name, "ok"] += 1
        elif balancer is not None:
            self._at_fault("invalid", balancer.cycle.tally.reason if balancer.cycle else "")
        return balancer

    def _took_aside(
        self, event: PolicyAnswered | PolicyFailed, name: str, balancer: Balancer | None
    ) -> Balancer | None:
        shadows = balancer.shadows if balancer is not None else None
        if isinstance(event, PolicyFailed):
            if shadows is not None:
                shadows.failed(name, event.request, f"policy {event.outcome}")
            self._shadow_at_fault(name, event.outcome, event.detail)
            return balancer
        fault = ""
        if balancer is not None and shadows is not None:
            fault = shadows.answered(name, event, balancer.pacer.round_cost_s)
        if fault:
            self._shadow_at_fault(name, "invalid", fault)
        elif name in self.shadow_breakers:
            self.shadow_breakers[name].succeeded()
            self.results[name, "ok"] += 1
        return balancer

    # --- faults ---------------------------------------------------------------------------------

    def _at_fault(self, outcome: str, detail: str) -> None:
        name = self.settings.policy.name
        self._fault("policy failed", name, outcome, detail)
        if self.breaker.failed():
            failures = self.settings.policy.failures_until_suspended
            self.suspended_for = f"{name}: {failures} failures in a row, the last: {outcome}"
            self._note("error", SUSPENDED, policy=name, failures=failures)

    def _shadow_at_fault(self, name: str, outcome: str, detail: str) -> None:
        self._fault("shadow failed", name, outcome, detail)
        breaker = self.shadow_breakers.get(name)
        if breaker is not None and breaker.failed():
            self._note("error", "shadow suspended", policy=name, failures=breaker.limit)

    def _fault(self, event: str, name: str, outcome: str, detail: str) -> None:
        self.results[name, outcome] += 1
        self._note("warning", event, policy=name, outcome=outcome, detail=detail)
        self.out.append(RememberFault(name, outcome, detail))

    def hold_to_promises(self, balancer: Balancer) -> None:
        """Suspend a policy whose moves do not bring what they were made for."""
        limit, gains = self.settings.alarms.losing_cycles, balancer.gains
        if not limit or gains.broken < limit or not self.breaker.trip():
            return
        name = self.settings.policy.name
        self.suspended_for = (
            f"{name}: {gains.broken} rebalances of group {balancer.group.name} in a row fell short "
            f"of their gain, the last with {gains.realised:.4f} of {gains.predicted:.4f}"
        )
        self._note("error", SUSPENDED, policy=name, reason=self.suspended_for)
        self.out.append(RememberFault(name, "gain", self.suspended_for))

    def _note(self, level: str, event: str, **fields: object) -> None:
        self.out.append(Note(level, event, fields))


def _breakers(settings: Settings) -> dict[str, Breaker]:
    limit = settings.policy.failures_until_suspended
    return {name: Breaker(limit) for name in settings.policy.shadow}
