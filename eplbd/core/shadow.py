"""Policies beside the active one: asked on live heat, scored on the next window, obeyed by nobody.

A shadow lives as if it had been in charge. It begins on the placement in force, and from there its
proposals build on each other: they are judged by the active policy's rules (trigger, gain, cost,
budget), so its moves per cycle are those that it would have made. Its moves take no time; how long
it planned is told beside its score.

Owns the hypothetical placements and the scores. Must not know when a question is put, nor what
becomes of a policy that fails.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core.cycle import Cycle, Tally
from eplbd.core.events import ShadowScored
from eplbd.core.placement import par, rank_load
from eplbd.core.plan import align
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from eplbd.core.assembly import Step
    from eplbd.core.events import PolicyAnswered
    from eplbd.core.heat import Heat
    from eplbd.core.orders import Orders
    from eplbd.core.placement import Placement
    from eplbd.core.settings import BalanceSettings
    from eplbd.core.topology import Topology

SCORED_STEPS = 128
"""Steps of the next window on which a shadow is scored, evenly spaced: 20 ms for 58 layers of 256
experts on 288 slots, on the loop that leads."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What all shadows are shown alike.

    heat: the window. steps: the same, with forwards and loads. moves: settled by the active policy
    so far. placement: in force. orders: that hold, and are kept by `placement`.
    """

    heat: Heat
    steps: Sequence[Step]
    moves: int
    placement: Placement
    orders: Orders

    def newer(self, forward: int) -> list[Step]:
        """Steps that came after `forward`."""
        return [step for step in self.steps if step.forward > forward]


@dataclass(frozen=True, slots=True)
class Score:
    """PAR over steps: the mean, and percentiles of the mean over layers."""

    mean: float
    p95: float
    p99: float

    @classmethod
    def of(cls, loads: NDArray[np.generic]) -> Score:
        """The score of `[steps, layers, ranks]`, at least one step."""
        steps = par(loads).mean(axis=1)
        p95, p99 = np.percentile(steps, (95, 99))
        return cls(float(steps.mean()), float(p95), float(p99))


class Shadow:
    """One policy as if it were in charge of a group."""

    def __init__(self, name: str, cycle: Cycle, placement: Placement) -> None:
        self.name, self.cycle, self.placement = name, cycle, placement
        self.request = 0
        """Of the question under way; 0 if there is none."""
        self.shown = -1
        """Newest forward of the window that it was last shown."""
        self.moves = self.active_moves = 0
        self.outcome = ""
        """Of the last question; empty once that was scored, until it is shown another window."""

    def show(self, look: Look, now: float) -> Heat | None:
        """Begin a cycle; what the policy is to be asked on, None if it would rest.

        Where its own placement cannot spare the ranks that are drained by now, it goes on from the
        one in force, which had to.
        """
        if look.orders.sole(self.placement) is not None:
            self.placement = look.placement
        self.cycle.orders = look.orders
        self.shown, self.active_moves = look.steps[-1].forward, look.moves
        self.moves, self.outcome = 0, "rested"
        self.cycle.tally = Tally(policy=self.name)
        return self.cycle.consider(look.heat, self.placement, self.name, now)

    def answered(self, event: PolicyAnswered, cost_s: float) -> None:
        """Take its proposal as `Cycle.answered` does. Raises PlacementError if it is none."""
        reason = self.cycle.answered(
            event.slots, self.placement, event.duration_s, cost_s, event.shares
        )
        self.request = 0
        if reason:
            self.outcome = "unchanged" if reason == "unchanged" else "refused"
            return
        assert self.cycle.plan is not None
        assert self.cycle.target is not None
        self.outcome, self.moves = "applied", self.cycle.plan.moves
        self.placement = align(self.placement, self.cycle.target)
        self.cycle.plan = None
        self.cycle.rest()

    def failed(self, reason: str) -> None:
        """It gave nothing usable: its placement stays."""
        self.request, self.outcome = 0, "failed"
        self.cycle.policy_failed(reason)

    def scored(self, group: str, look: Look, fresh: Sequence[Step]) -> ShadowScored:
        """Hold its placement against steps that came after the window it was shown."""
        chosen = fresh[:: -(-len(fresh) // SCORED_STEPS)]
        speed = np.array(self.cycle.topology.speed)
        own = Score.of(rank_load(self.placement, np.stack([step.heat for step in chosen])) / speed)
        active = Score.of(np.stack([step.load.T for step in chosen]) / speed)
        tally = self.cycle.tally
        return ShadowScored(
            group=group,
            policy=self.name,
            outcome=self.outcome,
            reason=tally.reason,
            steps=len(chosen),
            par_before=tally.par_before,
            par_predicted=tally.par_predicted,
            par_mean=own.mean,
            par_p95=own.p95,
            par_p99=own.p99,
            active_par_mean=active.mean,
            active_par_p95=active.p95,
            active_par_p99=active.p99,
            moves=self.moves,
            active_moves=look.moves - self.active_moves,
            plan_s=tally.policy_s,
        )


class Shadows:
    """All shadows of one group under one term. In a tick one does one thing: none takes long."""

    def __init__(
        self,
        settings: BalanceSettings,
        topology: Topology,
        layers: int,
        experts: int,
        *,
        weighted: bool = False,
    ) -> None:
        self.topology, self._layers, self._experts = topology, layers, experts
        self._weighted = weighted
        self.settings = settings
        self.members: dict[str, Shadow] = {}
        self.next_at = 0.0
        """When to look again, if the active policy is not asked before."""
        self._turns: deque[Shadow] = deque()
        self._look: Look | None = None

    def reconfigure(self, settings: BalanceSettings) -> None:
        """Take new settings; placements and cycles under way stay."""
        self.settings = settings
        for shadow in self.members.values():
            shadow.cycle.settings = self._rules
            shadow.cycle.refused = None

    @property
    def _rules(self) -> BalanceSettings:
        """What a shadow is judged by: had it been in charge, moves would be made."""
        return replace(self.settings, mode="dynamic")

    def retain(self, names: Iterable[str], current: Placement) -> None:
        """Watch these; a new one begins on the placement in force."""
        old = self.members
        self.members = {name: old.get(name) or self._begun(name, current) for name in names}
        self._turns = deque(s for s in self._turns if self.members.get(s.name) is s)

    def _begun(self, name: str, current: Placement) -> Shadow:
        cycle = Cycle(
            self._rules, self.topology, self._layers, self._experts, weighted=self._weighted
        )
        return Shadow(name, cycle, current)

    def look(self, look: Look, now: float) -> None:
        """Give every shadow that is not being asked a turn on this window."""
        self.next_at = now + self.settings.interval_s
        if len(look.steps) < max(2, self.settings.min_steps):
            return
        self._look = look
        self._turns.extend(
            shadow
            for shadow in self.members.values()
            if not shadow.request and shadow not in self._turns
        )

    def turn(self, group: str, now: float) -> ShadowScored | tuple[Shadow, Heat] | None:
        """The next shadow's turn: its score, or else what it is to be asked on; if either."""
        if not self._turns or self._look is None:
            return None
        shadow, look = self._turns.popleft(), self._look
        found: ShadowScored | tuple[Shadow, Heat] | None = None
        if not shadow.outcome:
            heat = shadow.show(look, now)
            found = None if heat is None else (shadow, heat)
        elif len(fresh := look.newer(shadow.shown)) >= self.settings.min_steps:
            found, shadow.outcome = shadow.scored(group, look, fresh), ""
            self._turns.appendleft(shadow)
        if not self._turns:
            self._look = None  # a window of heat is 30 MB
        return found

    def answered(self, name: str, event: PolicyAnswered, cost_s: float) -> str:
        """Take a shadow's answer; why it is no placement, empty if it is one."""
        shadow = self._asked(name, event.request)
        try:
            if shadow is not None:
                shadow.answered(event, cost_s)
        except PlacementError as error:
            self.failed(name, event.request, f"invalid: {error}")
            return str(error)
        return ""

    def failed(self, name: str, request: int, reason: str) -> None:
        """A shadow gave nothing usable."""
        shadow = self._asked(name, request)
        if shadow is not None:
            shadow.failed(reason)

    def _asked(self, name: str, request: int) -> Shadow | None:
        shadow = self.members.get(name)
        return shadow if shadow is not None and shadow.request == request else None
