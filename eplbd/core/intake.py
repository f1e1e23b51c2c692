"""How much heat is taken, so that no group keeps the daemon from the others.

Booking a report costs time, and whoever may connect may report as fast as a socket takes it. Owns
the share of every group: an equal part of the time that heat may take, whatever the machine makes
of that. Heat is lossy by design, so what is beyond a share is dropped and counted. Must not know
what a report says, nor a clock: what a report took is told.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.25
"""Of the time, that heat of workers may take. A rank of 58 layers x 9 slots takes a thousandth of a
core at 50 forwards a second; one of all 256 slots half a hundredth."""

BURST_S = 2.0
"""What piled up while the daemon or its peers were held up for so long is taken at once."""

IDLE_S = 10.0
"""A group that has reported nothing for so long has no part in the sharing."""


@dataclass(slots=True)
class _Account:
    """Seconds that a group's heat took beyond its share so far, as of a moment in seconds."""

    owed: float
    at: float


class Intake:
    """That of one daemon. Groups are bounded in number, so their accounts are."""

    def __init__(self) -> None:
        self.refused = 0
        """Reports that were beyond their group's share."""
        self._accounts: dict[str, _Account] = {}
        self._taken: _Account | None = None
        """Whose report is being booked."""

    def takes(self, group: str, now: float) -> bool:
        """Whether a report of `group` is within its share."""
        account = self._accounts.get(group)
        if account is None:
            recent = {n: a for n, a in self._accounts.items() if now - a.at < IDLE_S}
            account = recent[group] = _Account(0.0, now)
            self._accounts = recent
        share = SHARE / len(self._accounts)
        account.owed = max(0.0, account.owed - share * (now - account.at))
        account.at = now
        if account.owed < share * BURST_S:
            self._taken = account
            return True
        self.refused += 1
        return False

    def took(self, seconds: float) -> None:
        """Learn how long the step took: it counts where it was a report that was taken."""
        if self._taken is not None:
            self._taken.owed += seconds
            self._taken = None
