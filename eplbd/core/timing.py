"""What ranks say of times, to whom it concerns: pace of transfers, links, speed of the ranks.

Owns which figures belong to the epoch under way. Must not know what is made of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core import messages as m
from eplbd.core.bubble import Pacer
from eplbd.core.links import Links
from eplbd.core.speed import Speeds
from eplbd.core.topology import Link

if TYPE_CHECKING:
    from eplbd.core.group import Group
    from eplbd.core.leader import EpochLeader
    from eplbd.core.plan import EpochPlan
    from eplbd.core.settings import Settings


class Timing:
    """The pacer, the links and the speeds of one group."""

    def __init__(self, group: Group, settings: Settings) -> None:
        self._group = group
        self.links = Links()
        self.speeds = Speeds(group.shape.ranks)
        self.pacer = Pacer(
            expert_bytes=max(1, group.shape.expert_bytes),
            links=self.links,
            experts_per_rank=settings.epoch.experts_per_rank,
        )
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        """Take new settings."""
        transfer = settings.transfer
        self.pacer.ceiling = transfer.inflation_ceiling
        self.links.configure(transfer.node_bytes_per_s, transfer.network_bytes_per_s)

    def heard(self, rank: int, message: m.FromAgent) -> None:
        """Take what a message tells of times; nothing of an epoch that is over.

        Raises RemoteProtocolError for what is no duration.
        """
        match message:
            case m.Pulse(forward_s=plain, staging_forward_s=staging, gap_s=gap_s):
                self.pacer.observe(forward_s=plain, staging_forward_s=staging, gap_s=gap_s)
                self.speeds.observe(rank, plain)
            case m.Staged(term, epoch, stage_s=stage_s, transfer_s=transfer_s):
                leader = self._group.leader
                if leader is not None and (leader.term, leader.epoch) == (term, epoch):
                    self.pacer.staged(stage_s=stage_s, transfer_s=transfer_s)
                    received = message.bytes_received
                    self.links.heard(epoch, rank, transfer_s=transfer_s, received=received)
            case _:
                pass

    def settled(self, leader: EpochLeader, plan: EpochPlan) -> None:
        """Every rank has staged an epoch whole: learn from how long that took."""
        topology, before = self._group.topology, self._carried()
        assert topology is not None
        # One end of a round may wait a forward for the other, since each begins with its own.
        forwards = plan.rounds * (leader.stride + 1)
        self.links.learn(
            leader.epoch,
            plan.transfers,
            topology,
            expert_bytes=max(1, self._group.shape.expert_bytes),
            room_s=forwards * self.pacer.bubble_s,
        )
        now = self._carried()
        if any(limit and not 0 < was <= limit for was, limit in zip(before, now, strict=True)):
            node, network = (round(rate) for rate in now)
            self._group.note(
                "info", "links limit rounds", node_bytes_per_s=node, network_bytes_per_s=network
            )

    def _carried(self) -> tuple[float, float]:
        return self.links.bytes_per_s(Link.NODE), self.links.bytes_per_s(Link.NETWORK)
