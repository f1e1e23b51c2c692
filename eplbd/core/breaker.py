"""The circuit breaker of a policy: so many failures in a row and it is not asked again.

Owns one count. Must not know what failed, nor who takes over; there is no clock, because a policy
that is broken does not heal by waiting. A changed configuration or a restart makes a new breaker.
"""

from __future__ import annotations

from eplbd.errors import LocalProtocolError


class Breaker:
    """Counts failures in a row; at `limit` the policy is suspended, for good."""

    def __init__(self, limit: int) -> None:
        """Take the failures in a row that suspend, at least 1 (else LocalProtocolError)."""
        if limit < 1:
            raise LocalProtocolError(f"breaker: limit is {limit}, expected at least 1")
        self.limit = limit
        self.failures = 0
        """In a row, up to `limit`."""

    @property
    def suspended(self) -> bool:
        """Whether the policy must not be asked any more."""
        return self.failures >= self.limit

    def succeeded(self) -> None:
        """A usable answer breaks the row; after the suspension it is too late for that."""
        if not self.suspended:
            self.failures = 0

    def trip(self) -> bool:
        """Suspend at once, for a reason other than failures. True unless it was suspended."""
        tripped, self.failures = not self.suspended, self.limit
        return tripped

    def failed(self) -> bool:
        """A failure of whatever kind. True for the one that suspends, and for no other."""
        if self.suspended:
            return False
        self.failures += 1
        return self.suspended
