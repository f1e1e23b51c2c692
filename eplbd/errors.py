"""Every exception that eplbd raises on purpose: the class says whose fault it is.

Owns the tree and nothing else. It must not know how an error is handled: what freezes, restarts or
is merely counted is the supervisors' matter.
"""

from __future__ import annotations


class EplbdError(Exception):
    """Root of the tree. Never raised itself."""


class ConfigError(EplbdError):
    """The operator's fault: a setting, an environment variable or a topology that cannot work."""


class PolicyError(EplbdError):
    """A plugin's fault: a policy that raised, overran its deadline or answered nonsense."""


class RemoteProtocolError(EplbdError):
    """A peer's fault: a message that no correct peer sends."""


class LocalProtocolError(EplbdError):
    """Our own fault: a call that the contract forbids at this moment, or a broken invariant."""


class PlacementError(EplbdError, ValueError):
    """A placement that cannot be served. Nobody repairs it; the current one stays.

    `layer`, `rank` and `slot` (local to the rank) name the first offending place; each is None
    where the fault has no such coordinate (an expert that is nowhere has a layer and nothing else).
    """

    def __init__(
        self,
        message: str,
        *,
        layer: int | None = None,
        rank: int | None = None,
        slot: int | None = None,
    ) -> None:
        super().__init__(message)
        self.layer = layer
        self.rank = rank
        self.slot = slot


class TransferError(EplbdError):
    """The executor's fault: staging, verifying or committing weights failed."""
