"""A simulated rank that can be harmed: stopped, refused memory, kept waiting for the register."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core import messages as m
from eplbd.core.agent_events import Heard, Reserve, ReserveFailed
from eplbd.core.events import Tick
from eplbd.offline.cluster.rank import Member, Rank

if TYPE_CHECKING:
    from eplbd.core.placement import Placement


class SimRank(Rank):
    """Rank of a simulated group. The world calls its methods as the schedule wants."""

    def __init__(
        self, rank: int, placement: Placement, incarnation: str, *, weighted: bool = False
    ) -> None:
        super().__init__(Member("sim", incarnation, rank, "node0", weighted=weighted), placement)
        self.stopped = self.masked = False
        self.register_held_until = 0.0
        self.refuse_next = ""

    def heard(self, message: m.FromLeader) -> None:
        """The leader's message arrives."""
        self.step(Heard(message))

    def tick(self, now: float) -> None:
        """Time goes on here."""
        self.step(Tick(now))

    def pulse(self) -> m.Pulse:
        return m.Pulse(self.forward, masked=self.masked)

    def reserve(self) -> None:
        if not self.refuse_next:
            super().reserve()
            return
        effect = self.stager.popleft().effect
        assert isinstance(effect, Reserve)
        reason, self.refuse_next = self.refuse_next, ""
        self.step(ReserveFailed(effect.prepare.term, effect.prepare.epoch, reason))

    def next_map(self, prepare: m.Prepare) -> Placement:
        """Make the map of what was prepared, not of what the agent takes it to come to."""
        assert self.member.weighted or prepare.parts is None
        return self.map.with_layers(prepare.layers, prepare.slots, prepare.parts)
