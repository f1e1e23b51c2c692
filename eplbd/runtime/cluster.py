"""What this daemon is to those of other nodes: whom it lets in, and whom it dials.

Owns the trust in force, the one door and an uplink per leader. What a turn of the core has for one
node makes one bundle. Must not know what messages mean, nor who leads: the core does.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from eplbd.core.cluster import Address, Entry, HangUp, Led, Nod, Relayed, RelayGone, Up, Via
from eplbd.core.events import Note, Send
from eplbd.errors import ConfigError
from eplbd.runtime import bundles as b
from eplbd.runtime import door as d
from eplbd.runtime.complaints import Complaints
from eplbd.runtime.curve import NodeContext, node_context
from eplbd.runtime.identity import Identity
from eplbd.runtime.keys import Trust, read_trust
from eplbd.runtime.link import Sent
from eplbd.runtime.uplink import Uplink
from eplbd.tcp import is_wildcard, tcp_host
from eplbd.wire.codec import Frame

Say: TypeAlias = Callable[[Note], None]
Effect: TypeAlias = Send | Nod | Up | HangUp

UNTRUSTED, ASTRAY = "untrusted leader", "no address of a leader"
REFUSALS = (
    *(d.UNKNOWN, d.PLAIN, d.OTHERS, d.SHUT),
    *(b.GARBLED, b.VERSION, b.REPLAYED, b.TOO_LARGE),
    *(UNTRUSTED, ASTRAY),
)
"""Why something is not taken of another node, or not sent to it."""


UPLINKS_MAX = 64
"""Groups on one node are fewer (`core.node`); whoever may attach says where their leaders are."""


@dataclass(frozen=True, slots=True)
class ClusterStatistics:
    """Counts since the start, and what there is now."""

    bundles: b.BundleStatistics
    trusted: int
    relays: int
    """To which there is a way."""
    uplinks: int
    linked: int
    dropped: Mapping[str, int]
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Ends:
    """What a node that is not alone has.

    uplinks: the context of all of them, apart from the door's: a name that is slow to be looked up
    keeps its thread.
    """

    known: Identity
    door: d.Door
    uplinks: NodeContext


@dataclass(frozen=True, slots=True)
class _Held:
    """An uplink, and what ends it."""

    uplink: Uplink
    scope: anyio.CancelScope


class Cluster:
    """Made by `open_cluster`; belongs to the loop that runs.

    ends: None where the node is alone; then it has nothing to do. note: writes a line of the log.
    """

    def __init__(
        self, ends: Ends | None, max_bytes: int, complaints: Complaints, note: Say
    ) -> None:
        self._ends, self._max_bytes, self._note = ends, max_bytes, note
        self._complaints = complaints
        self._bundles = b.Bundles(max_bytes, complaints)
        self._trust = ends.known.trust if ends is not None else Trust({})
        self._uplinks: dict[Address, _Held] = {}
        self._down: dict[bytes, list[Entry]] = {}
        self._up: dict[Address, list[Entry]] = {}
        self._dropped = Counter(dict.fromkeys((Sent.DROPPED.value, Sent.UNREACHABLE.value), 0))
        self._step: Callable[..., None]
        self._tasks: TaskGroup | None = None
        self.failed = False
        """Whether something in the trust directory was wrong when it was read last."""

    async def run(self, step: Callable[..., None]) -> None:
        """Be there for other nodes, until cancelled. step: steps the core through events."""
        if self._ends is None:
            return
        self._step = step
        async with anyio.create_task_group() as self._tasks:
            await self._ends.door.run(functools.partial(self._relayed, self._ends.door))

    # --- effects --------------------------------------------------------------------------------

    def take(self, effect: Effect) -> None:
        """Take what the core has for another node; it leaves with `flush`."""
        match effect:
            case Send(Via(relay, group, rank), message):
                self._down.setdefault(relay, []).append(Entry(group, rank, 0, message))
            case Nod(relay):
                self._down.setdefault(relay, [])
            case Up(leader, entries):
                self._up.setdefault(leader, []).extend(entries)
            case HangUp(leader):
                self._hang_up(leader)

    def flush(self) -> list[RelayGone]:
        """Send what this turn had for each node, as one bundle; whom nobody reaches any more."""
        up, self._up = self._up, {}
        for leader, entries in up.items():
            uplink = self._dialled(leader)
            if uplink is not None:
                self._send(b.Way.UP, leader.key.encode(), entries, uplink.send)
        down, self._down = self._down, {}
        return [RelayGone(relay) for relay, entries in down.items() if self._gone(relay, entries)]

    def _gone(self, relay: bytes, entries: list[Entry]) -> bool:
        if self._ends is None:
            return True
        send = functools.partial(self._ends.door.send, relay)
        return self._send(b.Way.DOWN, relay, entries, send) is Sent.UNREACHABLE

    def _send(
        self,
        way: b.Way,
        key: bytes,
        entries: list[Entry],
        send: Callable[[list[Frame]], Sent],
    ) -> Sent:
        """What became of the last bundle."""
        outcome = Sent.DROPPED
        for frames, inside in self._bundles.packed(way, key, entries):
            outcome = send(frames)
            if outcome is Sent.QUEUED:
                self._bundles.sent(way, frames, inside)
            else:
                self._dropped[outcome.value] += 1
        return outcome

    # --- relays ---------------------------------------------------------------------------------

    def _relayed(self, door: d.Door, letters: list[d.Letter]) -> None:
        events: list[Relayed] = []
        for letter in letters:
            name = self._trust.name(letter.key)
            entries = self._bundles.opened(b.Way.UP, letter.key, name, letter.frames)
            if entries is not None:
                door.keep_route(letter)
                events.append(Relayed(letter.key, entries))
        if events:
            self._step(*events)

    # --- leaders --------------------------------------------------------------------------------

    def _dialled(self, leader: Address) -> Uplink | None:
        """The uplink to a leader, dialled if it was not yet; None if nobody vouches for it."""
        held = self._uplinks.get(leader)
        if held is not None:
            return held.uplink
        reason = self._doubt(leader)
        if reason:
            fields = {"leader": leader.endpoint, "key": leader.key}
            self._complaints.add(reason, leader, "leader refused", **fields)
            return None
        if self._tasks is None or self._ends is None:
            return None
        ends, tell = self._ends, functools.partial(self._told, leader)
        uplink = Uplink(ends.uplinks, leader, ends.known.pair, self._max_bytes, tell)
        held = self._uplinks[leader] = _Held(uplink, anyio.CancelScope())
        self._tasks.start_soon(self._hold, held)
        return uplink

    def _doubt(self, leader: Address) -> str:
        """Why an address is not dialled, which came from a worker; empty if it may be."""
        if leader.key.encode() not in self._trust:
            return UNTRUSTED
        if not tcp_host(leader.endpoint) or is_wildcard(leader.endpoint):
            return ASTRAY
        return ASTRAY if len(self._uplinks) >= UPLINKS_MAX else ""

    async def _hold(self, held: _Held) -> None:
        leader = held.uplink.leader
        with held.scope:
            await held.uplink.run(lambda letters: self._led(leader, letters))

    def _led(self, leader: Address, letters: list[list[bytes]]) -> None:
        key = leader.key.encode()
        opened = [
            self._bundles.opened(b.Way.DOWN, key, self._trust.name(key), frames)
            for frames in letters
        ]
        events = [Led(leader, entries) for entries in opened if entries is not None]
        if events:
            self._step(*events)

    def _hang_up(self, leader: Address) -> None:
        self._up.pop(leader, None)
        held = self._uplinks.pop(leader, None)
        if held is not None:
            held.scope.cancel()

    def _told(self, leader: Address, why: str) -> None:
        fields = {"leader": leader.endpoint, "node": self._trust.name(leader.key.encode())}
        if why:
            self._note(Note("warning", "uplink lost", {**fields, "reason": why}))
        else:
            self._note(Note("info", "uplink stands", fields))

    # --- trust ----------------------------------------------------------------------------------

    async def reload(self, folder: str) -> None:
        """Read the trust directory again; who is not in it any more is cut off at once."""
        if self._ends is None:
            return
        try:
            trust = await anyio.to_thread.run_sync(read_trust, Path(folder))
        except ConfigError as error:
            self.failed = True
            self._note(Note("error", "trust not reloaded", {"reason": str(error)}))
            return
        self.failed = bool(trust.faults)
        for fault in trust.faults:
            self._note(Note("error", "key not taken", {"reason": fault}))
        self._put_in_force(trust, self._ends.door)

    def _put_in_force(self, trust: Trust, door: d.Door) -> None:
        before, self._trust = self._trust, trust
        added = [name for key, name in trust.names.items() if key not in before]
        withdrawn = {key: name for key, name in before.names.items() if key not in trust}
        self._complaints.begin_anew()
        door.admit(trust)
        for leader in [leader for leader in self._uplinks if leader.key.encode() in withdrawn]:
            self._hang_up(leader)
        if added or withdrawn:
            fields = {"added": sorted(added), "withdrawn": sorted(withdrawn.values())}
            self._note(Note("info", "trust reloaded", fields))
        self._step(*map(RelayGone, withdrawn))

    def statistics(self) -> ClusterStatistics:
        """Counts so far."""
        uplinks = [held.uplink for held in self._uplinks.values()]
        return ClusterStatistics(
            bundles=self._bundles.statistics(),
            trusted=len(self._trust.names),
            relays=self._ends.door.reached if self._ends is not None else 0,
            uplinks=len(uplinks),
            linked=sum(uplink.linked for uplink in uplinks),
            dropped=dict(self._dropped),
            refused=dict(self._complaints.counts),
        )


@contextlib.contextmanager
def open_cluster(known: Identity | None, max_bytes: int, note: Say) -> Iterator[Cluster]:
    """Listen for other nodes while the block runs; nothing at all where the node is alone.

    Raises:
        ConfigError: The address cannot be had.
    """
    complaints = Complaints(REFUSALS, note)
    if known is None:
        yield Cluster(None, max_bytes, complaints, note)
        return

    def refused(reason: str, key: bytes) -> None:
        shown = {"key": key.decode(errors="replace")} if key else {}
        complaints.add(reason, key, "node refused", **shown)

    with (
        node_context() as uplinks,
        node_context() as context,
        d.open_door(context, known.listen, known.pair, max_bytes, refused) as door,
    ):
        door.admit(known.trust)
        yield Cluster(Ends(known, door, uplinks), max_bytes, complaints, note)
