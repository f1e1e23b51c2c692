"""How an agent keeps in touch with its leader: signs of life, silence, and where the leader is.

    alone -- Welcome --> connected -- silence, or the leader says that it knows us not --> alone

Owns when to say `Hello`, `Pulse`, and when to look into the group's store for the leader that other
nodes must reach. Must not know epochs: what being alone means for one is the agent's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core import agent_events as e

if TYPE_CHECKING:
    from eplbd.core.messages import Door, Welcome

SEEK_S = 2.0
"""The store answers from one thread, which serves the engine: a thousand lonely ranks ask it five
hundred times a second."""


class Contact:
    """One rank's contact to whoever leads; figures until a `Welcome` brings the leader's own."""

    def __init__(self, rank: int, *, heartbeat_s: float, silence_s: float) -> None:
        self._rank = rank
        self._heartbeat_s, self._silence_s = heartbeat_s, silence_s
        self.connected = False
        self.leader = self.leader_key = ""
        """As the group's store says; for `Hello`."""
        self._now = self._last_heard = self._next_beat = self._next_seek = 0.0

    def heard(self) -> None:
        """The leader said something."""
        self._last_heard = self._now

    def welcomed(self, welcome: Welcome) -> None:
        """The leader took us in."""
        self.connected = True
        self._heartbeat_s, self._silence_s = welcome.heartbeat_s, welcome.silence_s

    def lost(self) -> bool:
        """Be alone, and say so at once; whether this is news."""
        was, self.connected = self.connected, False
        if was:
            self._next_beat = self._now
        return was

    def silent(self, now: float) -> bool:
        """Let time pass; whether the leader was not heard of for too long."""
        self._now = now
        return self.connected and now - self._last_heard > self._silence_s

    def speak(self, term: int) -> list[e.AgentEffect]:
        """Whatever is due: a sign of life, a look into the store.

        Rank 0's daemon leads, so rank 0 need not look.
        """
        due: list[e.AgentEffect] = []
        if self._rank and not self.connected and self._now >= self._next_seek:
            self._next_seek = self._now + SEEK_S
            due.append(e.SeekLeader())
        if self._now >= self._next_beat:
            self._next_beat = self._now + self._heartbeat_s
            due.append(e.SayPulse() if self.connected else e.SayHello(term))
        return due

    def found(self, leader: e.LeaderFound) -> None:
        """The store answered."""
        self.leader, self.leader_key = leader.endpoint, leader.key

    def told(self, door: Door) -> list[e.AgentEffect]:
        """Our daemon says where others reach it: theirs must learn it, and rank 0 tells them."""
        return [] if self._rank else [e.PublishLeader(door.endpoint, door.key)]
