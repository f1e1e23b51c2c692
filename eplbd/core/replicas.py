"""Groups of one model on this node: what they learn of each other's heat, and whose turn it is.

Owns which groups are alike, the window that they pool, and the order of roll-outs. Each has its own
ledger, placement and pace all the same, and may have other numbers of ranks. Must not know how a
plan is made or judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core.cycle import Stage
from eplbd.core.group import Phase
from eplbd.core.heat import Heat

if TYPE_CHECKING:
    from eplbd.core.balancer import Balancer

ONE_AT_A_TIME = "one-at-a-time"


def alike(balancer: Balancer) -> Iterator[Balancer]:
    """The other groups of the same model: tensors, layers and experts are equal."""
    own = balancer.group.shape
    for other in balancer.neighbours:
        shape = other.group.shape
        same = (shape.layout_digest, shape.layers, shape.experts) == (
            own.layout_digest,
            own.layers,
            own.experts,
        )
        if same and other is not balancer:
            yield other


def shares_heat(patterns: Sequence[str], one: str, other: str) -> bool:
    """Whether one of `patterns`, with * as in file names, is of both groups."""
    return any(fnmatchcase(one, each) and fnmatchcase(other, each) for each in patterns)


def window(balancer: Balancer) -> Heat:
    """What to plan a group on: its own window, pooled with those of the groups it shares with."""
    assert balancer.ledger is not None
    balance, name = balancer.settings.balance, balancer.group.name
    own = balancer.ledger.heat(balance.phase)
    others = [
        other.ledger.heat(balance.phase)
        for other in alike(balancer)
        if other.ledger and shares_heat(balance.share_heat, name, other.group.name)
    ]
    return pooled(own, others, balance.window_steps) if others else own


def pooled(own: Heat, others: Sequence[Heat], most: int) -> Heat:
    """The newest `most` steps of all windows, by how many steps ago each was in its own.

    Replicas have no clock in common. Of equally old ones the group's own comes last.
    """
    windows = [*(other.steps for other in others), own.steps]
    age = np.concatenate([np.arange(len(steps))[::-1] for steps in windows])
    chosen = np.argsort(-age, kind="stable")[-most:]
    steps = np.concatenate(windows)[chosen]
    steps.setflags(write=False)
    return Heat(steps, own.phase)


def may_move(balancer: Balancer) -> bool:
    """Whether a group's next epoch may begin, as far as others of its model are concerned.

    One at a time: a group that has begun goes on until it is measured. One that lost a rank, and
    cannot go on, holds nobody up; nor does anybody hold up what an operator has ordered.
    """
    cycle = balancer.cycle
    if balancer.settings.balance.rollout != ONE_AT_A_TIME or (cycle and cycle.tally.ordered):
        return True
    begun = _under_way(balancer)
    for other in alike(balancer):
        first = not begun or other.group.name < balancer.group.name
        if _in_epoch(other) or (first and _under_way(other)):
            return False
    return True


def _in_epoch(balancer: Balancer) -> bool:
    leader = balancer.group.leader
    return leader is not None and not leader.overdue


def _under_way(balancer: Balancer) -> bool:
    """Whether a group is between the first epoch of a rebalance and the end of its measurement."""
    cycle, ready = balancer.cycle, balancer.group.phase is Phase.READY
    if cycle is None or not ready:
        return False
    moved = bool(cycle.tally.settled or cycle.tally.aborted)
    return cycle.stage is Stage.MEASURING or (cycle.stage is Stage.MOVING and moved)
