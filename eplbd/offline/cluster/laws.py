"""What must hold at every moment of a simulation, and at its end.

Owns the complaint. Must not know how a simulation is driven.
"""

from __future__ import annotations

from eplbd.errors import EplbdError


class BrokenLawError(EplbdError):
    """Something happened that must never happen: a fault of eplbd's."""


def demand(holds: bool, *told: object) -> None:  # noqa: FBT001  # reads as an assertion does
    """Raise BrokenLawError, in the words of `told`, unless it `holds`."""
    if not holds:
        raise BrokenLawError(" ".join(map(str, told)))
