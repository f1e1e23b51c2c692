"""What the links carry: bytes per second as configured, or as learnt from epochs that were late.

Owns the two figures: of a rank with others of its node, and of a node with all other nodes, its
ranks together; each way. It must not know what is decided by them (that is `bubble`) nor who sends
what (`sources`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from eplbd.core.rounds import Col, Transfers
from eplbd.core.topology import Link, Topology

_GROWTH = 1.1
"""By which a figure rises with each epoch in time: what was late once may have been somebody else's
traffic, and a link is not seen to carry more than it was given."""

_LONGEST_S = 86_400.0
"""No epoch stages longer; what lies outside was not measured."""


@dataclass(frozen=True, slots=True)
class _Took:
    """What one rank says of an epoch: seconds in which its rounds were under way, and bytes."""

    transfer_s: float
    received: int


class Links:
    """Those of one group. Pure: time enters as measured durations.

    node_bytes_per_s, network_bytes_per_s: as configured; 0 is to be learnt. An epoch that took
    longer than its rounds had shows what a link carries; one that did not shows only that it
    carries as much. So nothing is known, and nothing limited, before the first that was late.
    """

    def __init__(self, node_bytes_per_s: float = 0.0, network_bytes_per_s: float = 0.0) -> None:
        self.configure(node_bytes_per_s, network_bytes_per_s)
        self.spans = True
        """Whether the group has ranks on several nodes."""
        self._learnt = {Link.NODE: 0.0, Link.NETWORK: 0.0}
        self._epoch = 0
        self._took: dict[int, _Took] = {}

    def configure(self, node_bytes_per_s: float, network_bytes_per_s: float) -> None:
        """Take other figures; what was learnt is kept beside them."""
        self._configured = {Link.NODE: node_bytes_per_s, Link.NETWORK: network_bytes_per_s}

    def bytes_per_s(self, link: Link) -> float:
        """What a rank has to its node (NODE) or a node to all others (NETWORK); 0 if unknown."""
        if link is Link.NETWORK and not self.spans:
            return 0.0
        return self._configured[link] or self._learnt[link]

    def heard(self, epoch: int, rank: int, *, transfer_s: float, received: int) -> None:
        """Take what a rank says of an epoch that it has staged; 0 seconds where it does not."""
        if epoch != self._epoch:
            self._epoch, self._took = epoch, {}
        if 0 < transfer_s <= _LONGEST_S:
            self._took[rank] = _Took(transfer_s, received)

    def learn(
        self,
        epoch: int,
        transfers: Transfers,
        topology: Topology,
        *,
        expert_bytes: int,
        room_s: float,
    ) -> None:
        """Take what came of an epoch. room_s: seconds that its rounds had, 0 where unknown."""
        if epoch != self._epoch or room_s <= 0:
            return
        ways = _ways(transfers, topology, self._took, expert_bytes)
        seen = {Link.NODE: _within(ways), Link.NETWORK: _across(ways, topology)}
        for link, rate in seen.items():
            late = any(self._took[rank].transfer_s > room_s for rank, far in ways if far is link)
            known = self._learnt[link]
            if rate and late:
                self._learnt[link] = (known + rate) / 2 if known else rate
            elif rate and known:
                self._learnt[link] = max(known * _GROWTH, rate)


@dataclass(slots=True)
class _Way:
    """What reached one rank over one kind of link."""

    rounds: set[int]
    experts: int = 0
    nbytes: float = 0.0
    seconds: float = 0.0


def _ways(
    transfers: Transfers, topology: Topology, took: Mapping[int, _Took], expert_bytes: int
) -> dict[tuple[int, Link], _Way]:
    """By receiver and link. A rank's time is split by the rounds in which it used each."""
    ways: defaultdict[tuple[int, Link], _Way] = defaultdict(lambda: _Way(set()))
    for when, src, dst in transfers[:, [Col.ROUND, Col.SRC, Col.DST]].tolist():
        if src != dst and dst in took:
            way = ways[dst, topology.link(src, dst)]
            way.rounds.add(when)
            way.experts += 1
    for rank, said in took.items():
        own = [way for (dst, _), way in ways.items() if dst == rank]
        experts = sum(way.experts for way in own)
        busy = len(set[int]().union(*(way.rounds for way in own)))
        for way in own:
            each = said.received / experts
            # Experts of some layers may be smaller than the largest, by which epochs are planned.
            way.nbytes = way.experts * (each if 0 < each <= expert_bytes else expert_bytes)
            way.seconds = said.transfer_s * len(way.rounds) / busy
    return dict(ways)


def _within(ways: Mapping[tuple[int, Link], _Way]) -> float:
    """Bytes per second that the middle rank had from its node; 0 if none had any."""
    rates = [way.nbytes / way.seconds for (_, link), way in ways.items() if link is Link.NODE]
    return median(rates) if rates else 0.0


def _across(ways: Mapping[tuple[int, Link], _Way], topology: Topology) -> float:
    """Bytes per second of the node that took in most over the network; 0 if none did."""
    entering: defaultdict[int, list[_Way]] = defaultdict(list)
    for (rank, link), way in ways.items():
        if link is Link.NETWORK:
            entering[topology.node_of[rank]].append(way)
    rates = [
        sum(way.nbytes for way in own) / max(way.seconds for way in own)
        for own in entering.values()
    ]
    return max(rates, default=0.0)
