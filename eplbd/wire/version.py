"""Which wire version two peers speak, from the two ranges that they understand.

Owns the arithmetic and the sentence that names the side to upgrade. Must not know sessions.
"""

from __future__ import annotations

from eplbd.core.messages import WIRE_VERSION, WIRE_VERSION_MIN
from eplbd.errors import RemoteProtocolError


def negotiate(
    hello_wire: int,
    hello_min: int,
    ours: int = WIRE_VERSION,
    ours_min: int = WIRE_VERSION_MIN,
) -> int:
    """The newest version that both an agent and this daemon understand.

    Raises:
        RemoteProtocolError: There is none, or the agent's range is empty; says which side to
            upgrade.
    """
    if hello_min > hello_wire:
        raise RemoteProtocolError(
            f"the worker claims wire versions {hello_min} to {hello_wire}, which is none at all"
        )
    if hello_wire < ours_min:
        raise RemoteProtocolError(
            f"the worker speaks wire versions {hello_min} to {hello_wire}, this daemon {ours_min} "
            f"to {ours}: upgrade eplbd in the worker's environment"
        )
    if hello_min > ours:
        raise RemoteProtocolError(
            f"the worker speaks wire versions {hello_min} to {hello_wire}, this daemon {ours_min} "
            f"to {ours}: upgrade the daemon"
        )
    return min(hello_wire, ours)
