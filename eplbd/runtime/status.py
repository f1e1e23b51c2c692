"""How everything stands, as one JSON document for `eplbd ctl status` and programs of others.

Owns which parts it has: the event stream's snapshot, name by name, and the orders that are in
force. Names may be added. Must not know who asks.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from eplbd.core.obedience import EVERYONE, orders_of
from eplbd.core.orders import EVERY_LAYER, Hold, Orders
from eplbd.wire.stream import Snapshot


class HoldStatus(msgspec.Struct, frozen=True):
    """Who holds a group, and why, as stated."""

    frozen: bool
    who: str
    why: str


class PinStatus(msgspec.Struct, frozen=True):
    """A pinned expert; no layer is every layer."""

    expert: int
    layer: int | None


class OrderStatus(msgspec.Struct, frozen=True):
    """What is in force for one group; `group` empty: for every one."""

    group: str
    hold: HoldStatus | None
    pins: tuple[PinStatus, ...]
    drained: tuple[int, ...]


class Document(msgspec.Struct, frozen=True):
    """The whole of it."""

    snapshot: Snapshot
    orders: tuple[OrderStatus, ...]


def document(snapshot: Snapshot, orders: Mapping[str, Orders]) -> bytes:
    """As JSON."""
    groups = sorted({EVERYONE, *orders, *(group.name for group in snapshot.groups)})
    stated = tuple(_orders(group, orders_of(orders, group)) for group in groups)
    return msgspec.json.encode(Document(snapshot, stated))


def read_document(encoded: bytes) -> Document:
    """The document again; raises msgspec.ValidationError for what is none."""
    return msgspec.json.decode(encoded, type=Document)


def _orders(group: str, orders: Orders) -> OrderStatus:
    pins = (
        PinStatus(expert, None if layer == EVERY_LAYER else layer)
        for layer, expert in sorted(orders.pins)
    )
    return OrderStatus(group, _hold(orders.hold), tuple(pins), tuple(sorted(orders.drained)))


def _hold(hold: Hold | None) -> HoldStatus | None:
    return HoldStatus(hold.frozen, hold.who, hold.why) if hold else None
