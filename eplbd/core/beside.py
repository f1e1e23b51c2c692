"""A group's shadows at work: when they look at its heat, and what each of them is asked.

Owns that a shadow is shown what the active policy would be: the same window, the same ranks, under
the same orders. Must not know how a shadow is judged (that is `shadow`), nor who answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core.events import ShadowScored
from eplbd.core.shadow import Look

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplbd.core.balancer import Balancer
    from eplbd.core.heat import Heat


def watch(balancer: Balancer, names: Sequence[str]) -> None:
    """Let these policies, and no others, live as if they were in charge of the group."""
    if balancer.shadows is not None and balancer.group.placement is not None:
        balancer.shadows.retain(names, balancer.group.placement)


def show(balancer: Balancer, window: Heat) -> None:
    """Give every shadow a look at the window, which the active policy was just shown or would be.

    Not while drained ranks alone hold an expert: nobody can plan without them then.
    """
    shadows, ledger, placement = balancer.shadows, balancer.ledger, balancer.group.placement
    assert shadows is not None
    assert ledger is not None
    assert placement is not None
    orders = balancer.orders
    if shadows.members and orders.sole(placement) is None:
        steps = ledger.since(-1, balancer.settings.balance.phase)
        shadows.look(Look(window, steps, balancer.moves, placement, orders), balancer.now)


def ask(balancer: Balancer, request: int) -> str:
    """Let the next shadow act; the name of the policy if it used the request."""
    shadows, ledger, group = balancer.shadows, balancer.ledger, balancer.group
    if shadows is None or ledger is None or group.placement is None or group.frozen:
        return ""
    if shadows.members and balancer.now >= shadows.next_at:
        show(balancer, ledger.heat(balancer.settings.balance.phase))
    found = shadows.turn(group.name, balancer.now)
    if found is None:
        return ""
    if isinstance(found, ShadowScored):
        balancer.out.append(found)
        return ""
    shadow, heat = found
    shadow.request = request
    balancer.ask(request, shadow.name, heat, shadow.placement, shadow.cycle.orders, shadow=True)
    return shadow.name
