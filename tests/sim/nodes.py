"""A group whose ranks are on several nodes: a leader, relays, and a network between them.

Every daemon is the real `Node`. Between them go bundles, through the real codec, over a network
that loses, repeats, delays and reorders them, which no transport of ours does: what holds here
needs none. A node may be cut off, any daemon may die, and a leader may come back elsewhere.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from eplbd.core.cluster import Address, Entry, HangUp, Led, Nod, Relayed, RelayGone, Up, Via
from eplbd.core.events import Effect, EpochEnded, Event, Note, Persist, Received, Send, Tick
from eplbd.core.node import Node
from eplbd.wire.bundle import DOWN, UP
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

Sent = tuple[Address, list[bytes]]
"""To or from which leader, and the frames."""


@dataclass
class Nodes(World):
    """The world of several nodes. Rank 0 and its leader are on node 0."""

    nodes: int = 2

    def __post_init__(self) -> None:
        self.relays: list[Node | None] = [None] * self.nodes
        self.rising: list[deque[Sent]] = [deque() for _ in range(self.nodes)]
        self.falling: list[deque[Sent]] = [deque() for _ in range(self.nodes)]
        self.cut_until = [0.0] * self.nodes
        self.moves = 0
        super().__post_init__()
        for node in range(1, self.nodes):
            self.start_relay(node)

    @property
    def address(self) -> Address:
        """Where the leader is reached."""
        return Address(f"tcp://leader:{self.moves}", f"key {self.moves}")

    def home(self, rank: int) -> int:
        """Which node a rank is on."""
        return rank * self.nodes // self.shape.ranks

    # --- lives and deaths -----------------------------------------------------------------------

    def restart_group(self) -> None:
        super().restart_group()
        for me in self.ranks:
            me.member = replace(me.member, node=f"node{self.home(me.rank)}")

    def new_node(self) -> Node:
        return Node(self.settings, self.address)

    def kill_daemon(self) -> None:
        self.node = None
        here = [rank for rank in range(self.shape.ranks) if self.home(rank) == 0]
        self.cut_off([self.up[rank] for rank in here], [self.down[rank] for rank in here])
        self.cut_off([*self.rising], [*self.falling])

    def move_leader(self) -> None:
        """The leader's daemon restarts where nobody looks for it yet."""
        self.kill_daemon()
        self.moves += 1
        self.start_daemon(stale=self.random.random() < 0.5)

    def start_relay(self, node: int) -> None:
        """Start the daemon of a node that does not host rank 0."""
        self.relays[node] = Node(self.settings, Address(f"tcp://relay{node}", f"key of {node}"))
        self.feed_relay(node, Tick(self.now))

    def kill_relay(self, node: int) -> None:
        """SIGKILL, of a relay; the leader's transport may notice."""
        self.relays[node] = None
        here = [rank for rank in range(self.shape.ranks) if self.home(rank) == node]
        self.cut_off([self.up[rank] for rank in here], [self.down[rank] for rank in here])
        self.cut_off([self.falling[node]], [self.rising[node]])
        if self.random.random() < 0.5:
            self.feed(RelayGone(self.key(node)))

    def cut_network(self, node: int, seconds: float) -> None:
        """Nothing passes between a node and the leader's for a while."""
        self.cut_until[node] = self.now + seconds
        self.rising[node].clear()
        self.falling[node].clear()

    # --- shells ---------------------------------------------------------------------------------

    def key(self, node: int) -> bytes:
        """The public key that a relay proves to have."""
        return f"key of {node}".encode()

    def daemon_of(self, rank: int) -> Node | None:
        node = self.home(rank)
        return self.relays[node] if node else self.node

    def feed_relay(self, node: int, event: Event) -> None:
        """Give a relay an event and perform its effects."""
        relay = self.relays[node]
        if relay is None:
            return
        effects = relay.step(event)
        for effect in effects:
            self._perform_relay(node, effect)
        hung_up = {effect.leader for effect in effects if isinstance(effect, HangUp)}
        assert hung_up.isdisjoint(each.leader for each in relay.relays.groups.values())
        relay.check()

    def _perform_relay(self, node: int, effect: Effect) -> None:
        match effect:
            case Up(leader, entries):
                self._send(self.rising[node], node, leader, UP.encode(1, 1, entries))
            case Send(bytes() as peer, message):
                rank = int(peer.split(b".")[0])
                assert self.home(rank) == node
                if peer == self.peer(rank):
                    self.down[rank].append(message)
            case Note():
                self.log.append(effect)
            case Persist() | EpochEnded():
                raise AssertionError(f"a relay leads: {effect}")
            case _:
                pass

    def perform(self, effect: Effect) -> None:
        match effect:
            case Send(Via(relay, group, rank), message):
                self._check_term(message)
                node = self.home(rank)
                assert relay == self.key(node)
                entries = [Entry(group, rank, 0, message)]
                self._send(self.falling[node], node, self.address, DOWN.encode(1, 1, entries))
            case Nod(relay):
                (node,) = (n for n in range(1, self.nodes) if self.key(n) == relay)
                self._send(self.falling[node], node, self.address, DOWN.encode(1, 1))
            case _:
                super().perform(effect)

    # --- network --------------------------------------------------------------------------------

    def _send(self, queue: deque[Sent], node: int, leader: Address, frames: Any) -> None:  # noqa: ANN401 - as encoded
        if self.now < self.cut_until[node] or leader != self.address:
            return
        sent = leader, [bytes(frame) for frame in frames]
        queue.append(sent)
        if self.now < self.echo_until:
            self.limbo.append((self.now + self.random.uniform(0.05, 1.0), queue, sent))

    def deliver_up(self, rank: int) -> None:
        node = self.home(rank)
        if not node:
            super().deliver_up(rank)
            return
        seq, message = self.up[rank].popleft()
        self.feed_relay(node, Received(self.peer(rank), seq, message))

    def rise(self, node: int) -> None:
        """The oldest bundles of a relay reach the leader, if that is where they were sent."""
        for leader, frames in self._oldest(self.rising[node]):
            if leader == self.address and self.now >= self.cut_until[node]:
                self.feed(Relayed(self.key(node), UP.decode(frames).entries))

    def fall(self, node: int) -> None:
        """The oldest bundles of a leader reach a relay."""
        for leader, frames in self._oldest(self.falling[node]):
            if self.now >= self.cut_until[node]:
                self.feed_relay(node, Led(leader, DOWN.decode(frames).entries))

    def _oldest(self, queue: deque[Sent]) -> list[Sent]:
        """Some of what is on a way: as many as it takes for a crowded one to clear."""
        return [queue.popleft() for _ in range(self.random.randint(1, len(queue)))]

    def disturb_network(self, node: int, what: str, *, upward: bool) -> None:
        """Drop, repeat, reorder or hold back between two nodes."""
        self.disturb_queue(self.rising[node] if upward else self.falling[node], what)

    def tick(self) -> None:
        super().tick()
        for node in range(1, self.nodes):
            self.feed_relay(node, Tick(self.now))

    # --- schedules ------------------------------------------------------------------------------

    def actions(self) -> list[Callable[[], None]]:
        doable = super().actions()
        for node in range(1, self.nodes):
            if self.rising[node] and self.node:
                doable.append(partial(self.rise, node))
            if self.falling[node] and self.relays[node]:
                doable.append(partial(self.fall, node))
        return doable

    def settle(self, limit: int = 4000) -> None:
        self.cut_until = [0.0] * self.nodes
        for node in range(1, self.nodes):
            if self.relays[node] is None:
                self.start_relay(node)
        super().settle(limit)
