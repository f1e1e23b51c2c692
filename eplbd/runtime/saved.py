"""What an operator had kept: placements under a name, and the orders that outlive the daemon.

Owns two places in the state directory, `saved/<group>/<name>.npz` and `orders.json`. Must not know
when they are used. It blocks, and belongs in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from eplbd.core.commands import Keep
from eplbd.core.obedience import EVERYONE
from eplbd.core.orders import Hold, Orders, Pin
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.runtime.store import file_name
from eplbd.sources import near
from eplbd.traces.placements import load_placement, save_placement
from eplbd.wholefile import replacing

SAVED_MAX = 64
"""Placements of one group; one of 58 layers x 256 experts takes 70 kB."""

ORDERS = "orders.json"


class _Group(msgspec.Struct, frozen=True, omit_defaults=True):
    """Orders of one group, as they are written."""

    frozen_by: str = ""
    frozen_why: str = ""
    pins: tuple[Pin, ...] = ()
    drained: tuple[int, ...] = ()


class Saved:
    """The placements of all groups."""

    def __init__(self, state: Path) -> None:
        self._directory = state / "saved"

    def names(self, group: str) -> list[str]:
        """What is saved of a group."""
        return sorted(path.stem for path in self._of(group).glob("*.npz"))

    def write(self, keep: Keep) -> Path:
        """Keep a placement; one of the same name is replaced.

        Raises:
            ConfigError: There are too many, or the disk refuses.
        """
        folder = self._of(keep.group)
        path = folder / f"{keep.name}.npz"
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            if not path.exists() and len(self.names(keep.group)) >= SAVED_MAX:
                raise ConfigError(f"{SAVED_MAX} placements are the most; delete one of {folder}")
            save_placement(path, keep.placement, {"group": keep.group, "name": keep.name})
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
        return path

    def load(self, group: str, name: str) -> Placement:
        """A saved placement.

        Raises:
            ConfigError: There is none of this name, or it cannot be read.
        """
        known = self.names(group)
        if name not in known:
            hint = near(name, known) or f"; saved: {', '.join(known) or 'none'}"
            raise ConfigError(f"no placement of group {group} is saved as {name!r}{hint}")
        return load_placement(self._of(group) / f"{name}.npz")

    def _of(self, group: str) -> Path:
        return self._directory / file_name(group)


def write_orders(state: Path, orders: Mapping[str, Orders]) -> None:
    """Keep these in place of those before. Raises OSError."""
    written = {
        group: _Group(
            frozen_by=own.hold.who if own.hold else "",
            frozen_why=own.hold.why if own.hold else "",
            pins=tuple(sorted(own.pins)),
            drained=tuple(sorted(own.drained)),
        )
        for group, own in orders.items()
    }
    with replacing(state / ORDERS) as file:
        file.write(msgspec.json.format(msgspec.json.encode(written)) + b"\n")


def read_orders(state: Path) -> tuple[dict[str, Orders], str]:
    """What was kept, and what is wrong with it.

    Orders that cannot be read may have been a freeze: until somebody resumes, everything is frozen.
    """
    path = state / ORDERS
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, _Group])
    except FileNotFoundError:
        return {}, ""
    except (OSError, msgspec.MsgspecError) as error:
        reason = f"{path} cannot be read ({error})"
        hold = Hold(frozen=True, who="the daemon", why=f"{reason}; what was ordered is not known")
        return {EVERYONE: Orders(hold=hold)}, reason
    return {group: _orders(own) for group, own in found.items()}, ""


def _orders(own: _Group) -> Orders:
    hold = Hold(frozen=True, who=own.frozen_by, why=own.frozen_why) if own.frozen_by else None
    return Orders(hold, frozenset(own.pins), frozenset(own.drained))
