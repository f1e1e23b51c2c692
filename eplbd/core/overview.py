"""A look at everything: the daemon's machines as read-only values.

Owns the figures that are made for a look alone. Changes nothing and keeps nothing: a daemon that
nobody looks at pays nothing. Must not know who is looking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eplbd.core.placement import par
from eplbd.core.rounds import Col
from eplbd.core.topology import Link
from eplbd.core.totals import Totals
from eplbd.core.views import (
    BudgetOverview,
    EpochOverview,
    GroupOverview,
    NodeOverview,
    RankOverview,
    RankState,
    RelayOverview,
    ShadowOverview,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from eplbd.core.assembly import Step
    from eplbd.core.balancer import Balancer
    from eplbd.core.breaker import Breaker
    from eplbd.core.events import EpochEnded
    from eplbd.core.node import Node
    from eplbd.core.relay import Relay
    from eplbd.core.timing import Timing
    from eplbd.core.topology import Topology

LOOKED_AT = 32
"""Steps of the window that a look averages over, evenly spaced, the newest among them: PAR over
more differs in the third digit, and a look is taken on the loop that leads."""


def overview(node: Node) -> NodeOverview:
    """Look at everything: a millisecond for 58 layers on 32 ranks, ten on 1,024."""
    groups = (
        _group(balancer, node.totals.get(name, Totals()), node.questions.shadow_breakers, node.now)
        for name, balancer in sorted(node.balancers.items())
    )
    return NodeOverview(
        now=node.now,
        stopping=node.stopping,
        policy=node.settings.policy.name,
        suspended=node.questions.breaker.suspended,
        results=dict(node.questions.results),
        alarms=node.alarms.active,
        groups=tuple(groups),
        relays=tuple(_relay(relay) for _, relay in sorted(node.relays.groups.items())),
    )


def _group(
    balancer: Balancer, totals: Totals, breakers: Mapping[str, Breaker], now: float
) -> GroupOverview:
    group, ledger, cycle = balancer.group, balancer.ledger, balancer.cycle
    shape, settings = group.shape, balancer.settings.balance
    steps = ledger.since(-1, settings.phase) if ledger is not None else []
    observed, load = _loads(steps, group.topology)
    return GroupOverview(
        name=group.name,
        incarnation=group.incarnation,
        term=group.term,
        epoch=group.epoch,
        forward=group.forward,
        mode=settings.mode,
        phase=group.phase,
        frozen=group.frozen,
        paused=balancer.held,
        ranks=_ranks(balancer, now),
        nodes=group.topology.nodes if group.topology else 0,
        layers=shape.layers,
        experts=shape.experts,
        slots_per_rank=shape.slots_per_rank,
        expert_bytes=shape.expert_bytes,
        digest=group.placement.digest if group.placement else "",
        stage=cycle.stage if cycle else "",
        observed_par=observed,
        planned_par=cycle.planned if cycle else None,
        rank_load=load,
        heat=ledger.statistics() if ledger else None,
        window=len(steps),
        epoch_now=_epoch(balancer, now),
        budget=_budget(balancer.timing, settings.max_moves, totals.epoch),
        last_commit_age_s=_age(totals.settled_at, now),
        totals=totals,
        shadows=tuple(
            _shadow(name, totals, breakers.get(name)) for name in balancer.settings.policy.shadow
        ),
    )


def _loads(
    steps: Sequence[Step], topology: Topology | None
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """PAR per layer, slower ranks counting for more, and what the ranks carry of it."""
    if not steps or topology is None:
        return None, None
    stride = -(-len(steps) // LOOKED_AT)
    loads = np.stack([step.load.T for step in steps[::-1][::stride]])
    total = loads.sum(axis=0, dtype=np.float64)
    mean = total.mean(axis=1, keepdims=True)
    relative = np.where(mean > 0, total / np.where(mean > 0, mean, 1.0), 1.0)
    observed: NDArray[np.float64] = par(loads / np.array(topology.speed)).mean(axis=0)
    for array in (observed, relative):
        array.setflags(write=False)
    return observed, relative


def _ranks(balancer: Balancer, now: float) -> tuple[RankOverview, ...]:
    group, leader = balancer.group, balancer.group.leader
    newest = max((s.forward for s in group.sessions.values()), default=0)
    arriving = _arriving(balancer)
    waited = leader.waiting if leader else ()
    speed = group.topology.speed if group.topology else (1.0,) * group.shape.ranks
    return tuple(
        _rank(
            balancer,
            rank,
            newest=newest,
            staged_bytes=arriving[rank] * group.shape.expert_bytes,
            waited_for=rank in waited,
            speed=speed[rank],
            now=now,
        )
        for rank in range(group.shape.ranks)
    )


def _rank(
    balancer: Balancer,
    rank: int,
    *,
    newest: int,
    staged_bytes: int,
    waited_for: bool,
    speed: float,
    now: float,
) -> RankOverview:
    session = balancer.group.sessions.get(rank)
    return RankOverview(
        rank=rank,
        state=_state(balancer, rank),
        node=session.hello.node if session else "",
        forward=session.forward if session else 0,
        forward_lag=newest - session.forward if session else 0,
        last_seen_age_s=now - session.last_heard if session else None,
        heat_age_s=_age(session.heat_at, now) if session else None,
        reports=session.reports if session else 0,
        lost_reports=session.gaps if session else 0,
        lost_steps=session.lost_steps if session else 0,
        staged_bytes=staged_bytes,
        waited_for=waited_for,
        speed=speed,
    )


def _state(balancer: Balancer, rank: int) -> RankState:
    group = balancer.group
    if rank not in group.sessions:
        return RankState.ABSENT
    if rank in group.missing:
        return RankState.LOST
    if rank not in group.unsettled:
        return RankState.ATTACHED
    return RankState.SETTLING if rank in group.stands else RankState.GREETING


def _arriving(balancer: Balancer) -> list[int]:
    """Experts that the epoch under way brings to each rank from another."""
    ranks, plan = balancer.group.shape.ranks, balancer.epoch_plan
    if balancer.group.leader is None or plan is None:
        return [0] * ranks
    crossing = plan.transfers[plan.transfers[:, Col.SRC] != plan.transfers[:, Col.DST]]
    arriving: list[int] = np.bincount(crossing[:, Col.DST], minlength=ranks).tolist()
    return arriving


def _epoch(balancer: Balancer, now: float) -> EpochOverview | None:
    leader, plan = balancer.group.leader, balancer.epoch_plan
    if leader is None or plan is None:
        return None
    return EpochOverview(
        epoch=leader.epoch,
        phase=leader.phase,
        reason=leader.reason,
        age_s=now - min(leader.entered.values()),
        attempt=leader.attempt,
        at=leader.at,
        moves=plan.moves,
        bytes=plan.bytes(balancer.group.shape.expert_bytes),
        waiting=tuple(sorted(leader.waiting)),
        overdue=leader.overdue,
    )


def _budget(timing: Timing, max_moves: int, last: EpochEnded | None) -> BudgetOverview:
    pacer, links = timing.pacer, timing.links
    pace = pacer.current
    return BudgetOverview(
        experts_per_rank=pace.experts_per_epoch,
        stride=pace.stride,
        inflation_ceiling=pacer.ceiling,
        inflation=pacer.inflation,
        bubble_used=last.bubble_used if last else 0.0,
        forward_s=pacer.forward_s,
        max_moves=max_moves,
        node_bytes_per_s=links.bytes_per_s(Link.NODE),
        network_bytes_per_s=links.bytes_per_s(Link.NETWORK),
    )


def _shadow(name: str, totals: Totals, breaker: Breaker | None) -> ShadowOverview:
    score = totals.scores.get(name)
    return ShadowOverview(
        name=name,
        outcome=score.outcome if score else "",
        par_mean=score.par_mean if score else 0.0,
        active_par_mean=score.active_par_mean if score else 0.0,
        moves=score.moves if score else 0,
        suspended=breaker is not None and breaker.suspended,
    )


def _relay(relay: Relay) -> RelayOverview:
    return RelayOverview(
        group=relay.name,
        leader=relay.leader.endpoint,
        linked=relay.linked,
        last_heard_age_s=_age(relay.last_heard, relay.now),
        ranks=relay.ranks,
        forwarded=relay.forwarded,
        reason=relay.reason,
    )


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else now - at
