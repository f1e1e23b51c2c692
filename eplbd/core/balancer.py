"""One group's balancer: membership, heat, rebalance, shadows, recording and pace, joined.

Owns the order in which these act on a tick. Must not know peers of other groups nor the daemon's
life.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eplbd.core import messages as m
from eplbd.core.beside import show
from eplbd.core.commands import Keep
from eplbd.core.cycle import Cycle, Stage, Tally
from eplbd.core.epoch import Phase as EpochPhase
from eplbd.core.errand import Errands, mark, obey
from eplbd.core.events import (
    AskPolicy,
    Effect,
    PolicyAnswered,
    Status,
)
from eplbd.core.fixed import STATIC, FixedMap
from eplbd.core.gain import Gains
from eplbd.core.group import Group, Phase
from eplbd.core.guard import Guard
from eplbd.core.heat import Budget
from eplbd.core.ledger import Ledger
from eplbd.core.lines import cycle_line, epoch_line
from eplbd.core.opening import Opening, kept_of
from eplbd.core.orders import PREVIOUS, Orders
from eplbd.core.placement import par
from eplbd.core.prepare import write_prepares
from eplbd.core.recording import Recording
from eplbd.core.replicas import may_move, window
from eplbd.core.shadow import Shadows
from eplbd.core.speed import weigh
from eplbd.core.timing import Timing
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Collection

    from eplbd.core.assembly import Step
    from eplbd.core.cluster import NodeHeat
    from eplbd.core.heat import Heat
    from eplbd.core.opening import Kept
    from eplbd.core.placement import Placement
    from eplbd.core.plan import EpochPlan
    from eplbd.core.settings import Settings


class Balancer:
    """Everything the leader keeps about one EP group."""

    def __init__(
        self,
        hello: m.Hello,
        settings: Settings,
        *,
        stored_term: int,
        now: float,
        kept: Kept | None = None,
    ) -> None:
        self.settings = settings
        self.group = Group(hello, settings, stored_term=stored_term, now=now)
        self.ledger: Ledger | None = None
        self.cycle: Cycle | None = None
        self.shadows: Shadows | None = None
        self.fixed = FixedMap(settings.map)
        self.recording = Recording(self.group, wanted=settings.recording)
        self.timing = Timing(self.group, settings)
        self.pacer = self.timing.pacer
        self.guard = Guard(self.pacer)
        self.gains = Gains(settings.alarms.kept_share, settings.balance.min_gain)
        self.kept = kept
        """Where the group settled last, perhaps in an earlier life."""
        self.opening: Opening | None = None
        self.led_term = 0
        self.epoch_plan: EpochPlan | None = None
        self.moves = 0
        """Settled since the group was taken up."""
        self.outdated = False
        """Whether the plan under way was made under another mode."""
        self.stopping = False
        """Whether no further epoch may begin."""
        self.orders = self.ordered = Orders()
        """What holds for the group, and what of it the operator gave."""
        self.masked: frozenset[int] = frozenset()
        """Ranks to which the engine gives no tokens, as they say themselves."""
        self.errands = Errands()
        self.revoked = ""
        """Why the plan under way must not go on."""
        self.before: Placement | None = None
        """In force before the newest rebalance that changed anything."""
        self.neighbours: Collection[Balancer] = ()
        """All groups of the daemon."""
        self.now = now
        self.out: list[Effect] = []

    def drain(self) -> list[Effect]:
        """Return and forget what is to be done."""
        out = self.group.out + self.out + self.recording.out
        self.group.out, self.out, self.recording.out = [], [], []
        return out

    # --- what members say -----------------------------------------------------------------------

    def heard(self, rank: int, message: m.FromAgent) -> None:
        """Take a member's message.

        Raises RemoteProtocolError if a heat report cannot be right; nothing of it was taken.
        """
        if isinstance(message, m.HeatReport):
            if self.ledger is not None:
                self.ledger.report(rank, message)
                self._audit()
            return
        self.timing.heard(rank, message)
        self.group.heard(rank, message)
        if isinstance(message, m.Pulse):
            mark(self, rank, masked=message.masked)
            return  # there are thousands a second, and with each batch of them comes a tick
        self.after()

    def heard_node(self, heat: NodeHeat) -> None:
        """Take what a relay reports of several members; raises as `heard` does."""
        if self.ledger is not None:
            self.ledger.report_node(heat)
            self._audit()

    def _audit(self) -> None:
        assert self.ledger is not None
        for mismatch in self.ledger.audit():
            self.group.freeze(f"forward {mismatch.forward}: {mismatch.detail}")

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now: float, neighbours: Collection[Balancer] = ()) -> None:
        """Let time pass, beside the other groups of the daemon."""
        self.now, self.neighbours = now, neighbours
        self.group.tick(now)
        if self.ledger is not None:
            self.recording.tick(self.ledger)
        self.after()

    def after(self) -> None:
        """Do what has become possible."""
        group = self.group
        if group.term != self.led_term and group.placement is not None:
            self._lead()
        if group.leader is not None:
            if group.leader.ended:
                self._epoch_ended()
            return
        cycle = self.cycle
        if cycle is None or group.placement is None or group.phase is not Phase.READY:
            return
        if self.outdated:
            self.outdated = cycle.stage is Stage.PLANNING
            if cycle.stage is Stage.MOVING:
                cycle.drop("the mode was changed", self.now)
        obey(self, cycle, group.placement)
        resting = cycle.stage is Stage.RESTING and not self.held
        if self.fixed.due and resting and self.now >= cycle.next_at:
            self.fixed.begin(cycle, group.placement)
            self._say_fixed()
        if self.opening and self.opening.due and resting:
            self.opening.begin(cycle, group)
        if cycle.may_move(self.now) and not self.stopping and may_move(self):
            self._begin_epoch(cycle)
        elif cycle.stage is Stage.MEASURING:
            self.measure(cycle)

    # --- orders ---------------------------------------------------------------------------------

    @property
    def held(self) -> str:
        """Why no plan is made although one could be; empty if there is no reason."""
        if self.stopping:
            return "the daemon stops"
        return str(self.orders.hold) if self.orders.hold else ""

    # --- terms and settings ---------------------------------------------------------------------

    def _lead(self) -> None:
        """A term began on a map that all ranks confirmed: start the books afresh."""
        group = self.group
        assert group.topology is not None
        assert group.placement is not None
        self.led_term = group.term
        self.timing.links.spans = group.topology.nodes > 1
        shape, balance = group.shape, self.settings.balance
        self.ledger = Ledger(
            group.topology,
            layers=shape.layers,
            experts=shape.experts,
            window_steps=balance.window_steps,
            counts=shape.counts,
            dispatch=shape.dispatch,
        )
        self.ledger.placed(group.epoch, group.placement)
        sizes = group.topology, shape.layers, shape.experts
        self.cycle = Cycle(balance, *sizes, weighted=shape.weighted)
        self.shadows = Shadows(balance, *sizes, weighted=shape.weighted)
        self.cycle.next_at = self.shadows.next_at = self.now
        self.cycle.orders, self.revoked, self.errands = self.orders, "", Errands()
        self.epoch_plan = None
        self.outdated, self.fixed = False, FixedMap(self.settings.map)
        self.opening = Opening(group, self.kept)

    def reconfigure(self, settings: Settings) -> None:
        """Take new settings; the size of the heat window changes with the next term."""
        old, new = self.settings, settings
        self.settings = self.group.settings = settings
        if (old.balance.mode, old.map) != (new.balance.mode, new.map):
            self.outdated, self.fixed = True, FixedMap(settings.map)
        self.recording.wanted = settings.recording
        if self.cycle is not None and self.shadows is not None:
            self.cycle.settings, self.cycle.refused = settings.balance, None
            self.shadows.reconfigure(settings.balance)
        self.timing.reconfigure(settings)
        self.gains.demand(settings.alarms.kept_share, settings.balance.min_gain)

    # --- a rebalance ----------------------------------------------------------------------------

    def wants_policy(self, policy: str, request: int) -> bool:
        """Ask the policy for a plan if it is time and worth it; whether the request was used."""
        cycle, ledger, group = self.cycle, self.ledger, self.group
        if cycle is None or ledger is None or group.placement is None or group.topology is None:
            return False
        if group.phase is not Phase.READY or group.leader or not cycle.wants_plan(self.now):
            return False
        if self.held or self.orders.sole(group.placement) is not None or not may_move(self):
            return False
        assert self.opening is not None
        weigh(self)
        seen = self.opening.heat(window(self), group)
        heat = cycle.consider(seen, group.placement, policy, self.now)
        assert self.shadows is not None
        measured = not self.opening.assumed
        if measured and (heat is not None or self.now >= self.shadows.next_at):
            show(self, seen)
        if heat is None:
            return False
        self.ask(request, policy, heat, group.placement, self.orders)
        return True

    def ask(
        self,
        request: int,
        policy: str,
        heat: Heat,
        current: Placement,
        orders: Orders,
        *,
        shadow: bool = False,
    ) -> None:
        """Put a question to a policy, about ranks that `orders` let it see."""
        group = self.group
        assert group.topology is not None
        budget = Budget(
            moves=self.settings.balance.max_moves or None,
            bytes=None,
            deadline_s=self.settings.policy.deadline_s,
            expert_bytes=group.shape.expert_bytes,
            weighted=group.shape.weighted,
        )
        seen = orders.topology(group.topology), orders.seen(current)
        self.out.append(AskPolicy(request, group.name, policy, heat, *seen, budget, shadow))

    def proposed(self, event: PolicyAnswered) -> bool:
        """Take a policy's answer; whether it was a valid placement."""
        cycle, placement = self.cycle, self.group.placement
        if cycle is None or cycle.stage is not Stage.PLANNING or placement is None:
            return True
        try:
            refused = cycle.answered(
                event.slots, placement, event.duration_s, self.pacer.round_cost_s, event.shares
            )
        except PlacementError as error:
            self.refused(f"invalid: {error}", "failed", event.duration_s)
            return False
        if cycle.tally.dear:
            self.pacer.doubt()
        if not refused and self.opening and not self.opening.assumed:
            self.gains.promise(cycle.tally.gain_predicted, placement, self.served())
        if refused:
            known = ("unchanged", "recorded")
            self.cycle_ended(cycle.tally, refused if refused in known else "refused", 0.0)
        if cycle.target is not None:
            self.recording.placement(self.group.epoch, cycle.target, Status.PROPOSED)
        return True  # epochs begin with the next tick: whoever waits is answered in between

    def refused(self, reason: str, outcome: str, policy_s: float = 0.0) -> None:
        """The policy gave nothing usable, after `policy_s` seconds."""
        if self.cycle is not None and self.cycle.stage is Stage.PLANNING:
            self.cycle.tally.policy_s = policy_s
            self.cycle.policy_failed(reason)
            self.cycle_ended(self.cycle.tally, outcome, 0.0)

    def _begin_epoch(self, cycle: Cycle) -> None:
        group = self.group
        assert cycle.plan is not None
        pace = self.guard.pace(group)
        self.epoch_plan = cycle.plan.next_epoch(pace.experts_per_epoch, crossings=pace.crossings)
        if self.epoch_plan is None:
            cycle.measure(self.now)
            if cycle.tally.policy == STATIC:
                self.fixed.stands = True
                self._say_fixed()
            return
        prepares = write_prepares(
            self.epoch_plan, term=group.term, epoch=group.issued + 1, lane=group.lane
        )
        assert self.ledger is not None
        # Heat of the first forwards under the new map may arrive before the last acknowledgement.
        self.ledger.placed(group.issued + 1, self.epoch_plan.target)
        self.recording.placement(group.issued + 1, self.epoch_plan.target, Status.PLANNED)
        group.begin(prepares, pace.stride)

    def _epoch_ended(self) -> None:
        plan, cycle, group = self.epoch_plan, self.cycle, self.group
        assert plan is not None
        assert cycle is not None
        before, leader = group.placement, group.end(plan.target)
        settled = leader.phase is EpochPhase.SETTLED
        line = epoch_line(group, leader, plan, cycle.tally.policy, self.pacer.used)
        self.out.append(line)
        if settled:
            assert group.placement is not None
            self.timing.settled(leader, plan)
            self.kept = persist = kept_of(group)
            self.out.append(persist)
            self.recording.placement(group.epoch, group.placement, Status.IN_FORCE)
            self.moves += plan.moves
            if before is not None and not cycle.tally.settled:
                self.before = before
                self.out.append(Keep(group.name, PREVIOUS, before))
        cycle.epoch_ended(line, now=self.now)
        self.after()

    def served(self) -> list[Step]:
        """Steps of the window that ran under the map in force."""
        assert self.ledger is not None
        steps = self.ledger.since(-1, self.settings.balance.phase)
        return [step for step in steps if step.epoch == self.group.epoch]

    def _say_fixed(self) -> None:
        group = self.group
        assert group.placement is not None
        if self.fixed.refused:
            group.note("error", "static placement refused", reason=self.fixed.refused)
        elif self.fixed.stands:
            digest = group.placement.digest
            group.note("info", "static placement stands", epoch=group.epoch, digest=digest)

    def measure(self, cycle: Cycle) -> None:
        """Close the rebalance once the new map has been measured, or could not be in time.

        The books know which steps ran under which epoch: none from before the flip is among these.
        """
        assert self.ledger is not None
        assert self.group.placement is not None
        under = self.group.epoch, self.settings.balance.phase
        if (
            self.ledger.under(*under) < self.settings.balance.min_steps
            and self.now < cycle.deadline
        ):
            return
        loads = self.ledger.loads(*under)
        outcome = cycle.outcome
        enough = outcome == "applied" and loads.shape[0] >= self.settings.balance.min_steps
        served = self.served() if enough else []
        cycle.tally.gain_realised = self.gains.measure(served, self.group.placement)
        realised = par(loads / self.gains.speed).mean(axis=0) if loads.shape[0] else np.empty(0)
        self.cycle_ended(
            cycle.rest(),
            outcome,
            float(realised.mean()) if realised.size else 0.0,
            tuple(round(float(value), 4) for value in realised),
        )

    def cycle_ended(
        self, tally: Tally, outcome: str, realised: float, layers: tuple[float, ...] = ()
    ) -> None:
        """Write the line of a rebalance."""
        self.out.append(cycle_line(self.group.name, tally, outcome, realised, layers))
