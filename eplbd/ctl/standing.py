"""How everything stands, in lines of at most 80 characters.

Owns the words for people; `eplbd ctl status --json` is for programs. Must not know where the
figures come from.
"""

from __future__ import annotations

from collections.abc import Iterator

from eplbd.core.views import RelayOverview
from eplbd.runtime.status import Document, OrderStatus
from eplbd.wire.stream import Group

RANKS_NAMED = 7
"""More ranks than this in one trouble are counted, not named."""


def lines(document: Document) -> Iterator[str]:
    """The daemon, then each group with what is ordered for it."""
    seen = document.snapshot
    policy = f"{seen.policy}, suspended" if seen.suspended else seen.policy
    yield f"eplbd {seen.version} on {seen.host}, up {_age(seen.up_s)}, policy {policy}"
    orders = {order.group: order for order in document.orders}
    if seen.stopping:
        yield "the daemon stops"
    for relay in seen.relays:
        yield ""
        yield from _relay(relay)
    if not seen.groups:
        yield "no group is led here" if seen.relays else "no worker has attached"
        yield from _orders(orders[""])
    for group in seen.groups:
        yield ""
        yield from _group(group)
        if group.name in orders:
            yield from _orders(orders[group.name])


def _group(group: Group) -> Iterator[str]:
    what = f"{group.phase}, {group.stage}" if group.stage else group.phase
    yield f"group {group.name}: {what}, mode {group.mode}, epoch {group.epoch}, term {group.term}"
    attached = [rank for rank in group.ranks if rank.state == "attached"]
    shape = f"{group.layers} layers, {group.experts} experts, {group.slots_per_rank} slots each"
    yield f"  ranks    {len(attached)} of {len(group.ranks)} attached; {shape}"
    for trouble in sorted({rank.state for rank in group.ranks} - {"attached"}):
        there = [str(rank.rank) for rank in group.ranks if rank.state == trouble]
        more = f" and {len(there) - RANKS_NAMED} more" if len(there) > RANKS_NAMED else ""
        yield f"           {trouble}: {', '.join(there[:RANKS_NAMED])}{more}"
    if group.observed_par:
        mean = sum(group.observed_par) / len(group.observed_par)
        worst = max(range(len(group.observed_par)), key=group.observed_par.__getitem__)
        hottest = f"layer {worst} {group.observed_par[worst]:.3f}"
        yield f"  load     PAR {mean:.3f} over {group.window} steps, at most {hottest}"
    else:
        yield "  load     no heat yet"
    yield f"  epochs   {_counts(group.epochs)}; last commit {_since(group.last_commit_age_s)}"
    yield f"  cycles   {_counts(group.cycles)}"
    budget = group.budget
    moves = str(budget.max_moves) if budget.max_moves else "any number of"
    yield f"  budget   {moves} moves, forwards at most x{budget.inflation_ceiling:g} while moving"
    if budget.bubble_used:
        pace = f"{budget.experts_per_rank} experts a rank, a round each {budget.stride} forwards"
        yield f"  bubbles  {budget.bubble_used:.0%} used by the last epoch; {pace}"
    carried = {"in a node": budget.node_bytes_per_s, "between": budget.network_bytes_per_s}
    if known := [f"{_bytes(rate)}/s {where}" for where, rate in carried.items() if rate]:
        yield f"  links    {', '.join(known)}, each way"
    if uneven := [f"{rank.rank} x{rank.speed:g}" for rank in group.ranks if rank.speed != 1.0]:
        more = f" and {len(uneven) - RANKS_NAMED} more" if len(uneven) > RANKS_NAMED else ""
        yield f"  speed    {', '.join(uneven[:RANKS_NAMED])}{more}; others x1"
    if group.frozen:
        yield f"  frozen   by itself: {group.frozen}"


def _relay(relay: RelayOverview) -> Iterator[str]:
    there = ", ".join(map(str, relay.ranks[:RANKS_NAMED])) or "none"
    more = f" and {len(relay.ranks) - RANKS_NAMED} more" if len(relay.ranks) > RANKS_NAMED else ""
    yield f"group {relay.group}: led by the daemon at {relay.leader}; status and orders are there"
    yield f"  ranks    {there}{more} of this node, relayed"
    heard = f"heard {_since(relay.last_heard_age_s)}"
    yield f"  leader   {heard}" if relay.linked else f"  leader   LOST: {relay.reason}"


def _orders(order: OrderStatus) -> Iterator[str]:
    if order.hold:
        what = "frozen" if order.hold.frozen else "paused"
        yield f"  {what}   by {order.hold.who}: {order.hold.why}"
    for rank in order.drained:
        yield f"  drained  rank {rank}"
    for pin in order.pins:
        where = "every layer" if pin.layer is None else f"layer {pin.layer}"
        yield f"  pinned   expert {pin.expert} in {where}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _since(age_s: float | None) -> str:
    return "never" if age_s is None else f"{_age(age_s)} ago"


def _bytes(count: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} B"


def _age(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
