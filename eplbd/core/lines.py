"""The two canonical lines of a group: one per epoch, one per rebalance.

Owns what they say. Must not know why an epoch or a rebalance came to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core.epoch import Phase
from eplbd.core.events import CycleEnded, EpochEnded
from eplbd.core.story import tell

if TYPE_CHECKING:
    from eplbd.core.cycle import Tally
    from eplbd.core.group import Group
    from eplbd.core.leader import EpochLeader
    from eplbd.core.plan import EpochPlan


def epoch_line(
    group: Group, leader: EpochLeader, plan: EpochPlan, policy: str, bubble_used: float
) -> EpochEnded:
    """Of an epoch that has ended; `policy` is the author of its moves."""
    entered, end = leader.entered, leader.now

    def lasted(begin: Phase, after: Phase) -> float:
        return entered.get(after, end) - entered[begin] if begin in entered else 0.0

    settled = leader.phase is Phase.SETTLED
    assert group.topology is not None
    return EpochEnded(
        group=group.name,
        term=leader.term,
        epoch=leader.epoch,
        outcome=str(leader.phase),
        reason="" if settled else leader.reason,
        layers=len(plan.layers),
        moves=plan.moves,
        bytes=plan.bytes(group.shape.expert_bytes),
        rounds=plan.rounds,
        attempts=leader.attempt,
        at=leader.at,
        prepare_s=lasted(Phase.PREPARE, Phase.STAGE),
        stage_s=lasted(Phase.STAGE, Phase.ARM),
        commit_s=lasted(Phase.ARM, Phase.SETTLED),
        stall_s=leader.stall_s,
        policy=policy,
        lost_ranks=tuple(sorted(set(leader.ranks) - leader.alive)),
        by_link=plan.by_link(group.topology),
        story=() if settled else tell(leader.story),
        bubble_used=round(bubble_used, 4),
    )


def cycle_line(
    group: str, tally: Tally, outcome: str, realised: float, layers: tuple[float, ...] = ()
) -> CycleEnded:
    """Of a rebalance; realised: PAR that was measured, 0.0 where none was; layers: of each."""
    return CycleEnded(
        group=group,
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
        gain_predicted=tally.gain_predicted,
        gain_realised=tally.gain_realised,
        stall_s=tally.stall_s,
        bubble_used=round(tally.bubble_used, 4),
    )
