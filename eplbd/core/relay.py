"""A group that another daemon leads: what its ranks on this node say goes up, its orders come down.

             a bundle came from the leader
      LOST --------------------------------> LINKED
           <--------------------------------
             none for `silence_s`

A relay is a pipe. It has no part in an epoch and keeps nothing that one needs: the leader judges by
the ranks' own signs whether they live, the ranks by the leader's own beats whether it does. So a
relay that dies, or is cut off, looks to either side as if the other did; and the decision register,
which is the ranks' own, ends what was under way. Only heat and pulses are held back, for an
interval, to become one report of all ranks here and one bundle.

Owns the ranks on this node and whether their leader is heard. Must not know epochs, placements nor
transport.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core import messages as m
from eplbd.core.cluster import NODE, Address, Entry, NodeHeat, Up
from eplbd.core.events import Effect, Note, Send
from eplbd.core.report import check, of_node, of_rank

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from eplbd.core.settings import Settings

HEAT_BYTES = 1 << 22
"""Counts of one report to the leader, and what is held back of them: far more than honest ranks
say in an interval, far less than a message may hold."""


class Relay:
    """One life of a group, as a node sees it that does not lead it."""

    def __init__(self, hello: m.Hello, leader: Address, settings: Settings, *, now: float) -> None:
        self.name, self.incarnation, self.shape = hello.group, hello.incarnation, hello
        self.settings, self.now = settings, now
        self.leader = leader
        self.peers: dict[int, bytes] = {}
        """By rank."""
        self.linked = False
        self.last_heard: float | None = None
        """When a bundle of the leader came last."""
        self.forwarded = 0
        self.out: list[Effect] = []
        self._waits_since = now
        """For the leader; infinite once its loss was told."""
        self._heard_at: dict[int, float] = {}
        """By rank, when it spoke last."""
        self._withheld: dict[int, int] = {}
        """By rank, reports of heat that the leader will not see as messages of their own."""
        self._heat = _Heat(hello)
        self._map: m.Stands | None = None
        """The newest that a rank here said to hold."""
        self._pulses: list[Entry] = []
        """Those that wait, an interval at most, for something to travel with: each rank's own would
        be most of what a leader has to take."""
        self._next_beat = self._next_pulses = now
        self._spoke = False

    def drain(self) -> list[Effect]:
        """Return and forget what is to be done."""
        effects, self.out = self.out, []
        return effects

    @property
    def ranks(self) -> tuple[int, ...]:
        """Those here that are alive, ascending."""
        oldest = self.now - self.settings.session.silence_s
        return tuple(sorted(rank for rank, at in self._heard_at.items() if at >= oldest))

    @property
    def last_spoken(self) -> float:
        """When a rank here spoke last."""
        return max(self._heard_at.values())

    @property
    def reason(self) -> str:
        """Why the leader is not linked; empty while it is."""
        if self.linked:
            return ""
        if self.last_heard is None:
            return "the leader was not heard yet"
        return f"the leader is silent for {self.now - self.last_heard:.1f} s"

    # --- what ranks say -------------------------------------------------------------------------

    def hello(self, peer: bytes, seq: int, hello: m.Hello) -> bytes | None:
        """Take a rank in, whatever the leader will say of it; return the peer it replaces."""
        replaced = self.peers.get(hello.rank)
        self.peers[hello.rank] = peer
        self._withheld[hello.rank] = 0
        self._forward(hello.rank, seq, hello)
        return replaced if replaced != peer else None

    def heard(self, rank: int, seq: int, message: m.FromAgent) -> None:
        """Pass on what a rank says.

        Raises RemoteProtocolError for heat that no correct rank sends: it goes no further.
        """
        if isinstance(message, m.Stands):
            message = self._on_one_copy(message)
        if not isinstance(message, m.HeatReport):
            self._forward(rank, seq, message)
            return
        self._heard_at[rank] = self.now
        self._withheld[rank] += 1
        self._heat.take(rank, message, self.now)

    def _on_one_copy(self, message: m.Stands) -> m.Stands:
        """The message with the very arrays of the one before, if they are alike.

        Then they travel once for all ranks here; of a thousand ranks a map takes two megabytes.
        """
        known = self._map
        if (
            known is not None
            and np.array_equal(known.slots, message.slots)
            and _alike(known.parts, message.parts)
        ):
            return replace(message, slots=known.slots, parts=known.parts)
        self._map = message
        return message

    def _forward(self, rank: int, seq: int, message: m.FromAgent) -> None:
        self._heard_at[rank] = self.now
        entry = Entry(self.name, rank, max(0, seq - self._withheld[rank]), message)
        if isinstance(message, m.Pulse):
            self._pulses.append(entry)
        else:
            self._up(entry)

    def _up(self, *entries: Entry) -> None:
        """Send these, after the pulses that wait: a rank's messages keep their order."""
        pulses, self._pulses = self._pulses, []
        self.out.append(Up(self.leader, (*pulses, *entries)))
        self.forwarded += len(pulses) + len(entries)
        self._spoke, self._next_pulses = True, self.now + self.settings.cluster.interval_s

    # --- what the leader says -------------------------------------------------------------------

    def led(self) -> None:
        """A bundle came from the leader: it lives."""
        self.last_heard = self.now
        if not self.linked:
            self.linked = True
            self._note("info", "leader found")

    def order(self, rank: int, message: m.FromLeader) -> None:
        """Hand an order to a rank, if it is here."""
        peer = self.peers.get(rank)
        if peer is not None:
            self.out.append(Send(peer, message))

    def follow(self, leader: Address) -> None:
        """Relay to this leader from now on: another daemon leads, or the same elsewhere."""
        self.leader = leader
        self.linked, self.last_heard, self._waits_since = False, None, self.now
        self._note("info", "leader moved")

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Notice silence, give a sign of life, hand up heat."""
        self.now = now
        signs = self.settings.session
        if self.linked and self.last_heard is not None:
            self._waits_since = self.last_heard
        if now - self._waits_since > signs.silence_s:
            # Said once: until a bundle comes, nothing here changes.
            self.linked, self._waits_since = False, float("inf")
            self._note("warning", "leader lost", reason=self.reason)
        for report in self._heat.due(now, len(self.ranks), self.settings.cluster.interval_s):
            if self.linked:
                self._up(Entry(self.name, NODE, 0, report))
        if self._pulses and now >= self._next_pulses:
            self._up()
        if now >= self._next_beat:
            self._next_beat = now + signs.heartbeat_s
            if not self._spoke:
                self._up()
            self._spoke = False

    def _note(self, level: str, event: str, **fields: object) -> None:
        where = {"group": self.name, "leader": self.leader.endpoint}
        self.out.append(Note(level, event, {**where, **fields}))


def _alike(one: NDArray[np.int32] | None, other: NDArray[np.int32] | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


class _Heat:
    """Reports of heat until those of all ranks are there, or some have waited long enough."""

    def __init__(self, shape: m.Hello) -> None:
        slots = shape.slots_per_rank
        self._shape = shape
        self._columns = slots * shape.ranks if shape.counts is m.Counts.SENT else slots
        self._blocks: dict[tuple[int, int, str, int], dict[int, m.HeatReport]] = {}
        """By epoch, first forward, phase and steps, those of each rank."""
        self._since: dict[tuple[int, int, str, int], float] = {}
        self._bytes = 0

    def take(self, rank: int, report: m.HeatReport, now: float) -> None:
        """Keep a rank's report. Raises RemoteProtocolError for one that cannot be booked."""
        shape = self._shape
        check(of_rank(rank, report), ranks=shape.ranks, layers=shape.layers, columns=self._columns)
        key = report.epoch, report.first_forward, report.phase, len(report.counts)
        self._since.setdefault(key, now)
        reports = self._blocks.setdefault(key, {})
        if rank not in reports:
            reports[rank] = report
            self._bytes += report.counts.nbytes

    def due(self, now: float, ranks: int, interval_s: float) -> list[NodeHeat]:
        """Give out what all of so many ranks have reported, and what has waited an interval."""
        given: list[NodeHeat] = []
        full = self._bytes > HEAT_BYTES
        for key, reports in list(self._blocks.items()):
            if full or len(reports) >= ranks or now - self._since[key] >= interval_s:
                del self._blocks[key], self._since[key]
                self._bytes -= sum(report.counts.nbytes for report in reports.values())
                given += _cut(reports)
        return given


def _cut(reports: dict[int, m.HeatReport]) -> Iterator[NodeHeat]:
    """As few reports as stay under `HEAT_BYTES`."""
    each = max(report.counts.nbytes for report in reports.values())
    at_once = max(1, HEAT_BYTES // each)
    ranks = sorted(reports)
    for first in range(0, len(ranks), at_once):
        yield of_node({rank: reports[rank] for rank in ranks[first : first + at_once]})
