"""The groups of this node that other daemons lead.

Owns which group is relayed and to whom. A group is led where its rank 0 is; every other node's
ranks say where that is, as the group's store does, or the operator did. Must not know peers' groups
that are led here, nor transport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from eplbd.core import messages as m
from eplbd.core.cluster import Address, HangUp, Led
from eplbd.core.events import Effect, Note, Send
from eplbd.core.relay import Relay

if TYPE_CHECKING:
    from eplbd.core.group import Group
    from eplbd.core.settings import Settings

FORGOTTEN_S = 60.0
"""A group whose ranks here were all silent for so long has left this node."""


class Relays:
    """All of them. own: where other nodes reach this daemon; without it nothing is relayed."""

    def __init__(self, settings: Settings, own: Address | None) -> None:
        self.settings, self.own = settings, own
        self.groups: dict[str, Relay] = {}
        self.now = 0.0
        self.out: list[Effect] = []

    def drain(self) -> list[Effect]:
        """Return and forget what is to be done."""
        effects, self.out = self.out, []
        for relay in self.groups.values():
            effects += relay.drain()
        return effects

    def leader_of(self, hello: m.Hello, led: Group | None) -> Address | None:
        """Whom a local rank's group is relayed to; None where it is this daemon that leads.

        led: the group of that name that is led here.
        """
        relay = self.groups.get(hello.group)
        if relay is not None and hello.incarnation < relay.incarnation:
            return relay.leader
        if self.own is None or hello.rank == 0 or _has_rank_0(led, hello.incarnation):
            return None
        given = self.settings.cluster
        if given.leader:
            leader = Address(given.leader, given.leader_key)
        elif hello.leader:
            leader = Address(hello.leader, hello.leader_key)
        else:
            return relay.leader if relay and relay.incarnation == hello.incarnation else None
        return None if leader == self.own else leader

    def hello(self, peer: bytes, seq: int, hello: m.Hello, leader: Address) -> list[bytes]:
        """Take a rank in; return the peers that are members of this group no more."""
        relay, gone = self.groups.get(hello.group), list[bytes]()
        if relay is not None and hello.incarnation < relay.incarnation:
            reason = f"group {hello.group!r} has restarted since; stop this worker"
            self.out.append(Send(peer, m.Refused(reason)))
            return [peer]
        before = relay.leader if relay is not None else leader
        if relay is None or hello.incarnation > relay.incarnation:
            gone = [*relay.peers.values()] if relay is not None else []
            relay = self.groups[hello.group] = Relay(hello, leader, self.settings, now=self.now)
            fields = {"group": hello.group, "leader": leader.endpoint}
            self.out.append(Note("info", "group relayed", fields))
        elif leader != before:
            relay.follow(leader)
        self._hang_up(before)
        replaced = relay.hello(peer, seq, hello)
        return [*gone, *([] if replaced is None else [replaced])]

    def drop(self, name: str) -> list[bytes]:
        """Relay a group no more; return the peers that were its members."""
        relay = self.groups.pop(name, None)
        if relay is None:
            return []
        self._hang_up(relay.leader)
        return [*relay.peers.values()]

    def led(self, event: Led) -> None:
        """A bundle came from a leader: hand on what is for ranks here that obey this leader."""
        mine = {name: relay for name, relay in self.groups.items() if relay.leader == event.leader}
        for relay in mine.values():
            relay.led()
        for entry in event.entries:
            if entry.group in mine:
                # What comes down is the leader's alone: the codec took nothing else.
                mine[entry.group].order(entry.rank, cast("m.FromLeader", entry.message))

    def tick(self, now: float) -> list[bytes]:
        """Let time pass; return the peers of groups that were given up."""
        self.now = now
        gone: list[bytes] = []
        for name, relay in list(self.groups.items()):
            relay.tick(now)
            if now - relay.last_spoken > FORGOTTEN_S:
                gone += self.drop(name)
        return gone

    def reconfigure(self, settings: Settings) -> None:
        """Take new settings; another leader is followed with the ranks' next `Hello`."""
        self.settings = settings
        for relay in self.groups.values():
            relay.settings = settings

    def _hang_up(self, leader: Address) -> None:
        if all(relay.leader != leader for relay in self.groups.values()):
            self.out.append(HangUp(leader))


def _has_rank_0(led: Group | None, incarnation: str) -> bool:
    """Whether rank 0 of this life, or of a younger one, is on this node."""
    if led is None or led.incarnation < incarnation:
        return False
    first = led.sessions.get(0)
    return first is not None and isinstance(first.peer, bytes)
