"""The relays through which this daemon reaches ranks on other nodes.

Owns who of them is alive. Must not know groups: which rank is behind which relay, its peer says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core.cluster import Nod

if TYPE_CHECKING:
    from eplbd.core.settings import SessionSettings


class Downlinks:
    """Relays by the key that they proved to have, and when a bundle of each came last."""

    def __init__(self) -> None:
        self.heard_at: dict[bytes, float] = {}
        self._next = 0.0

    def heard(self, relay: bytes, now: float) -> None:
        """A bundle came."""
        self.heard_at[relay] = now

    def gone(self, relay: bytes) -> None:
        """There is no way to it any more."""
        self.heard_at.pop(relay, None)

    def nod(self, now: float, signs: SessionSettings) -> list[Nod]:
        """Let those that are alive know that their leader is, if it is time.

        It may have nothing to say to their ranks, before a group is complete.
        """
        if now < self._next:
            return []
        self._next = now + signs.heartbeat_s
        alive = {key: at for key, at in self.heard_at.items() if now - at <= signs.silence_s}
        self.heard_at = alive
        return [Nod(relay) for relay in alive]
