"""One group's balancer: membership, heat, rebalance and pace, joined.

Owns the order in which these act on a tick. Must not know peers of other groups nor the daemon's
life.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eplbd.core import messages as m
from eplbd.core.bubble import Pacer
from eplbd.core.cycle import Cycle, Stage, Tally
from eplbd.core.epoch import Phase as EpochPhase
from eplbd.core.events import AskPolicy, CycleEnded, Effect, EpochEnded, Persist, PolicyAnswered
from eplbd.core.group import Group, Phase
from eplbd.core.heat import Budget
from eplbd.core.leader import EpochLeader
from eplbd.core.ledger import Ledger
from eplbd.core.placement import par
from eplbd.core.prepare import write_prepares
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from eplbd.core.plan import EpochPlan
    from eplbd.core.settings import Settings


class Balancer:
    """Everything the leader keeps about one EP group."""

    def __init__(self, hello: m.Hello, settings: Settings, *, stored_term: int, now: float) -> None:
        self.settings = settings
        self.group = Group(hello, settings, stored_term=stored_term, now=now)
        self.ledger: Ledger | None = None
        self.cycle: Cycle | None = None
        self.pacer = Pacer(
            ceiling=settings.transfer.inflation_ceiling,
            expert_bytes=max(1, hello.expert_bytes),
            experts_per_rank=settings.epoch.experts_per_rank,
        )
        self.led_term = 0
        self.epoch_plan: EpochPlan | None = None
        self.draining = False
        """Whether no further epoch may begin."""
        self.now = now
        self.out: list[Effect] = []

    def drain(self) -> list[Effect]:
        """Return and forget what is to be done."""
        out = self.group.out + self.out
        self.group.out, self.out = [], []
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
        if isinstance(message, m.Pulse):
            self.pacer.observe(
                forward_s=message.forward_s, staging_forward_s=message.staging_forward_s
            )
        self.group.heard(rank, message)
        self._after()

    def _audit(self) -> None:
        assert self.ledger is not None
        for mismatch in self.ledger.audit():
            self.group.freeze(f"forward {mismatch.forward}: {mismatch.detail}")

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Let time pass."""
        self.now = now
        self.group.tick(now)
        self._after()

    def _after(self) -> None:
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
        if cycle.may_move(self.now) and not self.draining:
            self._begin_epoch(cycle)
        elif cycle.stage is Stage.MEASURING:
            self._measure(cycle)

    def _lead(self) -> None:
        """A term began on a map that all ranks confirmed: start the books afresh."""
        group = self.group
        assert group.topology is not None
        assert group.placement is not None
        self.led_term = group.term
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
        self.cycle = Cycle(balance, group.topology, shape.layers, shape.experts)
        self.cycle.weighted = shape.weighted
        self.cycle.next_at = self.now
        self.epoch_plan = None

    def reconfigure(self, settings: Settings) -> None:
        """Take new settings; the size of the heat window changes with the next term."""
        self.settings = self.group.settings = settings
        if self.cycle is not None:
            self.cycle.settings = settings.balance
        self.pacer.ceiling = settings.transfer.inflation_ceiling

    # --- a rebalance ----------------------------------------------------------------------------

    def wants_policy(self, policy: str, request: int) -> bool:
        """Ask the policy for a plan if it is time and worth it; whether the request was used."""
        cycle, ledger, group = self.cycle, self.ledger, self.group
        if cycle is None or ledger is None or group.placement is None or group.topology is None:
            return False
        if group.phase is not Phase.READY or group.leader or not cycle.wants_plan(self.now):
            return False
        heat = cycle.consider(
            ledger.heat(self.settings.balance.phase), group.placement, policy, self.now
        )
        if heat is None:
            return False
        budget = Budget(
            moves=self.settings.balance.max_moves or None,
            bytes=None,
            deadline_s=self.settings.policy.deadline_s,
            expert_bytes=group.shape.expert_bytes,
            weighted=group.shape.weighted,
        )
        self.out.append(
            AskPolicy(request, group.name, policy, heat, group.topology, group.placement, budget)
        )
        return True

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
            self.refused(f"invalid: {error}", "failed")
            return False
        if refused:
            self._cycle_ended(
                cycle.tally, "unchanged" if refused == "unchanged" else "refused", 0.0
            )
        self._after()
        return True

    def refused(self, reason: str, outcome: str) -> None:
        """The policy gave nothing usable."""
        if self.cycle is not None and self.cycle.stage is Stage.PLANNING:
            self.cycle.policy_failed(reason)
            self._cycle_ended(self.cycle.tally, outcome, 0.0)

    def _begin_epoch(self, cycle: Cycle) -> None:
        group = self.group
        assert cycle.plan is not None
        pace = self.pacer.pace()
        self.epoch_plan = cycle.plan.next_epoch(pace.experts_per_epoch)
        if self.epoch_plan is None:
            cycle.measure(self.now)
            return
        prepares = write_prepares(
            self.epoch_plan, term=group.term, epoch=group.issued + 1, lane=group.lane
        )
        assert self.ledger is not None
        # Heat of the first forwards under the new map may arrive before the last acknowledgement.
        self.ledger.placed(group.issued + 1, self.epoch_plan.target)
        group.begin(prepares, pace.stride)

    def _epoch_ended(self) -> None:
        plan, cycle, group = self.epoch_plan, self.cycle, self.group
        assert plan is not None
        assert cycle is not None
        leader = group.end(plan.target)
        settled = leader.phase is EpochPhase.SETTLED
        nbytes = plan.bytes(group.shape.expert_bytes)
        self.out.append(_epoch_line(group, leader, plan, nbytes, cycle.tally.policy))
        if settled:
            assert group.placement is not None
            self.out.append(Persist(group.name, group.term, group.epoch, group.placement))
        cycle.epoch_ended(
            settled=settled, moves=plan.moves, nbytes=nbytes, reason=leader.reason, now=self.now
        )
        self._after()

    def _measure(self, cycle: Cycle) -> None:
        """Close the rebalance once the new map has been measured, or could not be in time."""
        assert self.ledger is not None
        loads = self.ledger.loads(self.group.epoch)
        if loads.shape[0] < self.settings.balance.min_steps and self.now < cycle.deadline:
            return
        outcome = cycle.outcome
        realised = par(loads).mean(axis=0) if loads.shape[0] else np.empty(0)
        self._cycle_ended(
            cycle.rest(),
            outcome,
            float(realised.mean()) if realised.size else 0.0,
            tuple(round(float(value), 4) for value in realised),
        )

    def _cycle_ended(
        self, tally: Tally, outcome: str, realised: float, layers: tuple[float, ...] = ()
    ) -> None:
        self.out.append(
            CycleEnded(
                group=self.group.name,
                policy=tally.policy,
                outcome=outcome,
                reason=tally.reason,
                par_before=tally.par_before,
                par_predicted=tally.par_predicted,
                par_realised=realised,
                moves=tally.moves,
                bytes=tally.bytes,
                epochs_settled=tally.settled,
                epochs_aborted=tally.aborted,
                policy_s=tally.policy_s,
                layers=layers,
            )
        )


def _epoch_line(
    group: Group, leader: EpochLeader, plan: EpochPlan, nbytes: int, policy: str
) -> EpochEnded:
    entered, end = leader.entered, leader.now

    def lasted(begin: EpochPhase, after: EpochPhase) -> float:
        return entered.get(after, end) - entered[begin] if begin in entered else 0.0

    settled = leader.phase is EpochPhase.SETTLED
    return EpochEnded(
        group=group.name,
        term=leader.term,
        epoch=leader.epoch,
        outcome=str(leader.phase),
        reason="" if settled else leader.reason,
        layers=len(plan.layers),
        moves=plan.moves,
        bytes=nbytes,
        rounds=plan.rounds,
        attempts=leader.attempt,
        at=leader.at,
        prepare_s=lasted(EpochPhase.PREPARE, EpochPhase.STAGE),
        stage_s=lasted(EpochPhase.STAGE, EpochPhase.ARM),
        commit_s=lasted(EpochPhase.ARM, EpochPhase.SETTLED),
        stall_s=leader.stall_s,
        policy=policy,
        lost_ranks=tuple(sorted(set(leader.ranks) - leader.alive)),
    )
