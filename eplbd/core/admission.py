"""Which groups a daemon takes up: how many, and what their books of heat may come to in memory.

Whoever may connect may say `Hello`, and a few words of it stand for gigabytes. Owns the limits, and
which group makes room for another: one whose ranks have all gone. Must not know peers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core.events import Restored
from eplbd.core.heat import PHASES
from eplbd.core.report import LAG_STEPS

if TYPE_CHECKING:
    from eplbd.core.balancer import Balancer
    from eplbd.core.messages import Hello
    from eplbd.core.node import Node

GROUPS_MAX = 64
"""More EP groups than this on one node are a mistake or an attack."""

STORED_MAX = 4 * GROUPS_MAX
"""Groups of whose past something is kept."""

SESSION_BYTES = 2_048
COPIES = 2
"""Of the heat of a window, while a policy is asked: what is encoded, and the frames."""


def books_bytes(hello: Hello, window_steps: int) -> int:
    """The most that the books of such a group take: heat and load of each step that is kept."""
    steps = LAG_STEPS + len(PHASES) * window_steps
    heat, load = 4 * hello.layers * hello.experts, 4 * hello.layers * hello.ranks
    slots = 4 * hello.layers * hello.ranks * hello.slots_per_rank
    ranks = hello.ranks * (SESSION_BYTES + 8 * steps)
    return steps * (heat + load) + COPIES * window_steps * heat + 4 * slots + ranks


def no_room(node: Node, hello: Hello, *, led: bool) -> str:
    """Why a group is not taken up; empty if it is. Those whose ranks are all gone make room.

    led: whether this daemon is to lead it; a group that is relayed has no books here.
    """
    settings, name = node.settings, hello.group
    window, most = settings.balance.window_steps, settings.session.max_books_bytes
    needed = books_bytes(hello, window) if led else 0
    if needed > most:
        return (
            f"heat of {hello.layers} layers x {hello.experts} experts on {hello.ranks} ranks may "
            f"take {needed} bytes with balance.window_steps of {window}, more than "
            f"session.max_books_bytes, {most}: raise it, or keep fewer steps"
        )
    while reason := _full(node, name, needed):
        gone = [b for other, b in node.balancers.items() if other != name and _deserted(b)]
        if not gone:
            return reason
        _drop(node, min(gone, key=_last_heard))
    return ""


def _full(node: Node, name: str, needed: int) -> str:
    others = {other: b for other, b in node.balancers.items() if other != name}
    if len({*others, *node.relays.groups} - {name}) >= GROUPS_MAX:
        return f"this daemon already serves {GROUPS_MAX} groups"
    window = node.settings.balance.window_steps
    taken = sum(books_bytes(b.group.shape, window) for b in others.values())
    if taken + needed > node.settings.session.max_books_bytes:
        return (
            f"the books of {len(others)} groups may take {taken} bytes, there is no room for "
            f"{needed} more: raise session.max_books_bytes, or keep fewer steps"
        )
    return ""


def _deserted(balancer: Balancer) -> bool:
    group = balancer.group
    return len(group.missing) == group.shape.ranks and group.leader is None


def _last_heard(balancer: Balancer) -> float:
    sessions = balancer.group.sessions.values()
    return max((session.last_heard for session in sessions), default=0.0)


def _drop(node: Node, balancer: Balancer) -> None:
    """Forget a group but for what its next life goes by."""
    group, kept = balancer.group, balancer.kept
    del node.balancers[group.name]
    node.forget(group.peers())
    node.totals.pop(group.name, None)
    group.note("warning", "group dropped", reason="all its ranks are gone, another needs the room")
    node.out.extend(balancer.drain())
    if group.name in node.stored or len(node.stored) < STORED_MAX:
        node.stored[group.name] = Restored(
            group.name,
            max(group.term, group.stored_term),
            kept.epoch if kept else 0,
            kept.placement if kept else None,
            kept.likeness if kept else None,
        )
