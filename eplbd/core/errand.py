"""Where the operator sends a group, and what ends for that.

Owns what is to be gone to next: what was ordered last, or, where an order about drained ranks does
not hold any more (a new life of the group begins on the engine's own layout), what restores it. The
moves are a rebalance like any other. Must not know who may order what.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from eplbd.core.cycle import Stage
from eplbd.core.drain import drained
from eplbd.core.fixed import misfit
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eplbd.core.balancer import Balancer
    from eplbd.core.cycle import Cycle
    from eplbd.core.orders import Orders
    from eplbd.core.placement import Placement

DRAIN = "drain"
ROLLBACK = "rollback"
LOAD = "load"
"""In the log, the authors of ordered moves."""


@dataclass(frozen=True, slots=True, eq=False)
class Errand:
    """author: what the log calls it. placement: where to; None for what drained ranks ask for."""

    author: str
    placement: Placement | None = None


class Errands:
    """At most one errand: a later one replaces it."""

    def __init__(self) -> None:
        self.next: Errand | None = None
        self.refused = ""
        """Why the newest one could not begin."""

    def order(self, errand: Errand) -> None:
        """Go there next."""
        self.next, self.refused = errand, ""

    def due(self, cycle: Cycle, current: Placement, *, resting: bool) -> bool:
        """Whether there is somewhere to go; drained ranks are looked at where the group rests."""
        lacking = resting and not self.refused and cycle.orders.sole(current) is not None
        if self.next is None and lacking:
            self.next = Errand(DRAIN)
        return self.next is not None

    def begin(self, cycle: Cycle, current: Placement, heat: NDArray[np.generic]) -> None:
        """Plan the moves, if there are any; `refused` says why it cannot be.

        heat: `[layers, experts]`.
        """
        errand, self.next = self.next, None
        assert errand is not None
        try:
            target = errand.placement or drained(
                current, cycle.orders, heat, weighted=cycle.weighted
            )
            self.refused = misfit(target, current) or cycle.orders.breach(current, target)
            if not self.refused and cycle.go_to(target, current, errand.author):
                cycle.tally.ordered = True
        except PlacementError as error:
            self.refused = str(error)


def take_orders(balancer: Balancer, orders: Orders) -> None:
    """Follow these from now on; a plan under way that is against them goes no further.

    Ranks that this life of the group does not have are not drained in it; those that its engine
    masks are.
    """
    cycle, group, old = balancer.cycle, balancer.group, balancer.orders
    balancer.ordered = orders
    orders = orders.within(group.shape.ranks)
    orders = balancer.orders = replace(orders, drained=orders.drained | balancer.masked)
    balancer.errands.refused = ""
    if cycle is None or group.placement is None:
        return
    cycle.orders, cycle.refused = orders, None
    if cycle.stage is Stage.PLANNING and old.drained != orders.drained:
        balancer.revoked = "other ranks are drained now"
    elif cycle.stage is Stage.MOVING and cycle.target is not None:
        balancer.revoked = balancer.revoked or orders.breach(group.placement, cycle.target)
    halt = _held(cycle, orders) or balancer.revoked
    if halt:
        group.give_up(halt)
    balancer.after()


def mark(balancer: Balancer, rank: int, *, masked: bool) -> None:
    """Take it that the engine gives a rank no tokens, or does so again."""
    if masked == (rank in balancer.masked):
        return
    balancer.masked ^= {rank}
    told = ("warning", "rank masked by the engine") if masked else ("info", "rank serves again")
    balancer.group.note(*told, rank=rank)
    take_orders(balancer, balancer.ordered)


def obey(balancer: Balancer, cycle: Cycle, placement: Placement) -> None:
    """End what must not go on, and set out where the operator sends the group."""
    orders, moving = balancer.orders, cycle.stage in (Stage.PLANNING, Stage.MOVING)
    halt = _held(cycle, orders) or balancer.revoked
    balancer.revoked = ""
    if halt and moving:
        close(balancer, cycle, halt)
    if balancer.stopping or (orders.hold and orders.hold.frozen):
        return
    if not balancer.errands.due(cycle, placement, resting=cycle.stage is Stage.RESTING):
        return
    assert balancer.ledger is not None
    close(balancer, cycle, "the operator sends the group elsewhere")
    heat = balancer.ledger.heat(balancer.settings.balance.phase).total
    balancer.errands.begin(cycle, placement, heat)
    if balancer.errands.refused:
        balancer.group.note("error", "order refused", reason=balancer.errands.refused)


def _held(cycle: Cycle, orders: Orders) -> str:
    """Why what is under way must not go on: a freeze ends all, a pause what policies want."""
    hold = orders.hold
    return str(hold) if hold and (hold.frozen or not cycle.tally.ordered) else ""


def close(balancer: Balancer, cycle: Cycle, why: str) -> None:
    """End the rebalance under way before its time; its books are what they are by now."""
    match cycle.stage:
        case Stage.PLANNING:
            balancer.refused(why, "refused")
        case Stage.MOVING:
            cycle.drop(why, balancer.now)
            balancer.gains.forget()  # nobody is held to a promise that was not let be kept
            outcome = cycle.outcome if cycle.tally.settled else "refused"
            balancer.cycle_ended(cycle.rest(), outcome, 0.0)
        case Stage.MEASURING:
            cycle.deadline = balancer.now
            balancer.measure(cycle)
        case _:
            pass
