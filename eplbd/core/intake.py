"""How much heat is taken, so that no group keeps the daemon from the others.

Reading a report costs time, and whoever may connect may report as fast as a socket takes it. Owns
the share of every group: an equal part of what is taken a second. Heat is lossy by design, so what
is beyond a share is dropped and counted. Must not know what a report says.
"""

from __future__ import annotations

from dataclasses import dataclass

BURST_S = 2.0
"""Of a share that may come at once: what piled up while the daemon or its peers were held up."""

IDLE_S = 10.0
"""A group that has reported nothing for so long has no part in the sharing."""


@dataclass(slots=True)
class _Account:
    """What a group has brought beyond its share so far, in bytes, as of a moment in seconds."""

    owed: float
    at: float


class Intake:
    """That of one daemon. Groups are bounded in number, so their accounts are."""

    def __init__(self) -> None:
        self.refused = 0
        """Reports that were beyond their group's share."""
        self._accounts: dict[str, _Account] = {}

    def takes(self, group: str, nbytes: int, bytes_per_s: float, now: float) -> bool:
        """Whether a report of `nbytes` is within the share of `group`; if so, it is booked."""
        account = self._accounts.get(group)
        if account is None:
            recent = {n: a for n, a in self._accounts.items() if now - a.at < IDLE_S}
            account = recent[group] = _Account(0.0, now)
            self._accounts = recent
        share = bytes_per_s / len(self._accounts)
        account.owed = max(0.0, account.owed - share * (now - account.at))
        account.at = now
        if account.owed >= share * BURST_S:
            self.refused += 1
            return False
        account.owed += nbytes
        return True
