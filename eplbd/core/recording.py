"""What of a group is recorded: every complete step, and each placement with its part in it.

Owns when a record is opened and what goes into it. Must not know files, formats nor how much room
there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core.events import OpenRecord, RecordPlacement, RecordSteps, Status

if TYPE_CHECKING:
    from eplbd.core.events import Effect
    from eplbd.core.group import Group
    from eplbd.core.ledger import Ledger
    from eplbd.core.placement import Placement


class Recording:
    """The record of one group. Its owner takes what is in `out`."""

    def __init__(self, group: Group, *, wanted: bool) -> None:
        self._group = group
        self.wanted = wanted
        """May be set at any time."""
        self.out: list[Effect] = []

    def tick(self, ledger: Ledger) -> None:
        """Hand on the steps that have become complete; open the record before the first."""
        group = self._group
        if self.wanted and not ledger.recording and group.topology and group.placement:
            shape = group.shape
            self.out.append(
                OpenRecord(
                    group=group.name,
                    incarnation=group.incarnation,
                    topology=group.topology,
                    layers=shape.layers,
                    experts=shape.experts,
                    expert_bytes=shape.expert_bytes,
                    counts=shape.counts,
                )
            )
            self.placement(group.epoch, group.placement, Status.IN_FORCE)
        ledger.recording = self.wanted
        steps = ledger.recorded()
        if steps:
            self.out.append(RecordSteps(group.name, steps))

    def placement(self, epoch: int, placement: Placement, status: Status) -> None:
        """Hand on a placement."""
        if self.wanted:
            self.out.append(RecordPlacement(self._group.name, epoch, placement, status))
