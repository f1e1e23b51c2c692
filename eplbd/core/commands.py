"""What an operator may tell a running daemon, and what becomes of it, as values.

Owns the vocabulary, and the events and effects that carry it. `group` empty: every group where that
makes sense (hold and resume), else the only one. Must not know who says what (`Commanded` states
it) nor how it is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eplbd.core.heat import Heat
    from eplbd.core.orders import Orders
    from eplbd.core.placement import Placement


@dataclass(frozen=True, slots=True)
class Pause:
    """Let the policy rest; what is ordered is still done."""

    group: str = ""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Let no placement change, over restarts; the epoch under way is given up if it can be."""

    group: str = ""


@dataclass(frozen=True, slots=True)
class Resume:
    """Lift what was paused or frozen by order."""

    group: str = ""


@dataclass(frozen=True, slots=True)
class Force:
    """Ask the policy now, and take its answer whatever it gains."""

    group: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class GoTo:
    """Go to a placement, and stay there.

    author: what the log calls it, `rollback` or `load`. name: what the operator calls the
    placement. placement: where to; None for the one before the last rebalance. spare: of a
    rollback, what the state directory holds of that one, for a daemon that has made none.
    """

    group: str
    author: str
    name: str
    placement: Placement | None = None
    spare: Placement | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep an expert's replicas on their ranks; in every layer without one named."""

    expert: int
    layer: int | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Unpin:
    """Undo `Pin`: the very same layer, or every pin of the expert without one named."""

    expert: int
    layer: int | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """Make a rank one that can be spared, and keep it so."""

    rank: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Undrain:
    """Undo `Drain`."""

    rank: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class DumpHeat:
    """Hand out the window of heat; changes nothing."""

    group: str = ""


@dataclass(frozen=True, slots=True)
class Save:
    """Keep the placement in force under a name."""

    name: str
    group: str = ""


Command: TypeAlias = (
    Pause | Freeze | Resume | Force | GoTo | Pin | Unpin | Drain | Undrain | DumpHeat | Save
)

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Commanded:
    """An operator wants something; answered with `Answer` or `Keep` of the same request.

    who, why: as the operator states them, for the records.
    """

    request: int
    command: Command
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class OrdersRestored:
    """What had been ordered until further notice, by group, when the daemon before this ended."""

    orders: Mapping[str, Orders]


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class HeatDump:
    """A group's window of heat. topk: experts per token, 0 where no step tells."""

    group: str
    heat: Heat
    topk: int
    first_forward: int
    last_forward: int


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What becomes of a command: `refused` says why nothing does, `told` what does."""

    request: int
    refused: str = ""
    told: str = ""
    dump: HeatDump | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Keep:
    """Keep a placement of a group under a name; `request`, if not 0, is to be answered then."""

    group: str
    name: str
    placement: Placement
    request: int = 0


@dataclass(frozen=True, slots=True)
class RememberOrders:
    """Keep what is ordered, by group, over restarts, in place of what was kept before."""

    orders: Mapping[str, Orders]
