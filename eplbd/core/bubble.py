"""How fast weights may travel beside the forwards, so that latency stays under its ceiling.

Owns the pace: from forward times measured with and without transfers it finds, by additive increase
and multiplicative decrease, the experts per forward that the bubbles take; and how much of them was
used. It must not know which transfers there are (that is `rounds`) nor when an epoch begins.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil
from statistics import median

from eplbd.core.links import Links
from eplbd.core.topology import Link
from eplbd.errors import RemoteProtocolError

_STEP = 1 / 8
"""Increase per trial, in experts per forward: six epochs that went well lead from one round in four
forwards to one in each. Near the floor half of the pace instead, lest one step be a multiple."""

_DECREASE = 1 / 2
"""Decrease after a trial over the ceiling, as TCP's; additive increase with it converges (Chiu and
Jain, 1989)."""

_SLOWEST = 1 / 64
"""Floor, in experts per forward: an epoch must end while its plan still holds."""

_FASTEST = 1.0
"""Most experts per forward: a round begins where a forward ended, and brings a rank one expert."""

_START = 1 / 4
"""Experts per forward before anything is known of the links."""

_FIGURES = 33
"""Newest figures of forwards without transfers, and of one trial, of which the middle one counts. A
mean would follow the one rank that was not scheduled for a second."""

_MEMORY = 0.8
"""Weight of the past in what a round costs, per trial: about five trials."""

_WORST = 2.0
"""Inflation that transfers are held to account for at most: two that share one thing evenly take
twice the time. What is beyond is a busy machine's, and no reason to think moves dear."""

_EPOCH_FORWARDS = 32
"""Forwards that an epoch should stage in, about twice the margin before its commit."""


_SHARED = (Link.NODE, Link.NETWORK)

_SHORTEST_S, _LONGEST_S = 1e-6, 86_400.0
"""No forward is over sooner, none is measured later; what lies outside is noise or no duration."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How an epoch may stage.

    stride: forwards per round, at least 1. experts_per_epoch: per rank, so that the epoch stages in
    reasonable time. crossings: most experts that enter a node, and that leave it, over the network
    in a round, so that they are through before the next; None where the network's speed is unknown.
    """

    stride: int
    experts_per_epoch: int
    crossings: int | None = None


class Pacer:
    """Finds the pace of one group. Pure: time enters as measured durations.

    ceiling: most that a forward may take while staging, as a ratio to one without. expert_bytes: of
    one expert, the most that a round brings to a rank. links: what they carry, asked each time; by
    default nothing is known of them. experts_per_rank: most that an epoch may bring to a rank, its
    number of staging buffers.
    """

    def __init__(
        self,
        *,
        ceiling: float = 1.05,
        expert_bytes: int = 1,
        links: Links | None = None,
        experts_per_rank: int = 2,
    ) -> None:
        self.ceiling = ceiling
        """May be set at any time; the next trial is judged by it."""
        self._expert_bytes = expert_bytes
        self._links = Links() if links is None else links
        self._experts_per_rank = experts_per_rank
        self._rate = 0.0
        """Experts per forward; 0 until first asked for."""
        self._plain: deque[float] = deque(maxlen=_FIGURES)
        """Seconds of forwards without transfers, newest last."""
        self._gaps: deque[float] = deque(maxlen=_FIGURES)
        """Seconds from a forward to the next one."""
        self._trial: deque[float] = deque(maxlen=_FIGURES)
        """Seconds of staging forwards since the pace was last judged."""
        self._inflation = 0.0
        """Ratio found in the last trial; 0 before the first."""
        self._used = 0.0
        self._cost = _Cost()

    def observe(
        self, *, forward_s: float = 0.0, staging_forward_s: float = 0.0, gap_s: float = 0.0
    ) -> None:
        """Take an agent's mean times since its last pulse, seconds.

        forward_s: of forwards during which nothing was staged. staging_forward_s: of the others.
        gap_s: between them. 0 where there was no such forward. Raises RemoteProtocolError for what
        is no duration.
        """
        _demand_durations(
            "pulse", forward_s=forward_s, staging_forward_s=staging_forward_s, gap_s=gap_s
        )
        if gap_s >= _SHORTEST_S:
            self._gaps.append(gap_s)
        if forward_s >= _SHORTEST_S:
            self._plain.append(forward_s)
        if staging_forward_s >= _SHORTEST_S:
            self._trial.append(staging_forward_s)

    def staged(self, *, stage_s: float, transfer_s: float) -> None:
        """Take how long a rank staged, and for how long of that its rounds were under way.

        Of every rank once per epoch; 0 seconds where it did not say. Raises RemoteProtocolError for
        what is no duration.
        """
        _demand_durations("staged", stage_s=stage_s, transfer_s=transfer_s)
        if transfer_s and stage_s >= _SHORTEST_S:
            self._used = max(self._used, min(1.0, transfer_s / stage_s))

    def pace(self) -> Pace:
        """The pace of the next epoch.

        What was observed since the last call is one trial, judged now: over the ceiling the pace is
        halved, else it rises by a step. Without new figures the answer stays the same.
        """
        rate, self._used = self._rate or self._first(), 0.0
        if self._trial and self._plain:
            self._inflation = median(self._trial) / self.forward_s
            self._cost.learn(self.current.stride, self._inflation - 1)
            rate = rate * _DECREASE if self.over else rate + min(_STEP, rate / 2)
            self._trial.clear()
        self._rate = max(_SLOWEST, min(rate, _FASTEST, self._line_rate()))
        return self.current

    @property
    def current(self) -> Pace:
        """The pace that was given out last; before the first, the one to begin with."""
        rate = self._rate or max(_SLOWEST, self._first())
        stride = max(1, ceil(1 / rate))
        network = self._carried(Link.NETWORK)
        return Pace(
            stride=stride,
            experts_per_epoch=max(1, min(self._experts_per_rank, int(rate * _EPOCH_FORWARDS))),
            crossings=max(1, int(network * stride)) if network else None,
        )

    @property
    def forward_s(self) -> float:
        """Time of a forward without transfers, seconds; 0 where unknown."""
        return median(self._plain) if self._plain else 0.0

    @property
    def bubble_s(self) -> float:
        """Time from one forward without transfers to the next, seconds; 0 where unknown."""
        return self.forward_s + median(self._gaps or [0.0]) if self._plain else 0.0

    @property
    def inflation(self) -> float:
        """Forwards with transfers to those without, as a ratio, in the last trial; 0 before it."""
        return self._inflation

    @property
    def used(self) -> float:
        """Share of the bubbles that rounds took, 0 to 1, in the epoch of the newest pace.

        All the time in which an epoch stages is a bubble, between forwards or beside them; of the
        ranks the one counts that used most of it. 0 where none has said.
        """
        return self._used

    @property
    def over(self) -> bool:
        """Whether forwards were slower than the ceiling in the last trial."""
        return self._inflation > self.ceiling

    @property
    def helpless(self) -> bool:
        """Whether they were, although the pace is as slow as it gets."""
        return self.over and self._rate <= _SLOWEST

    @property
    def round_cost_s(self) -> float:
        """Seconds of latency that one round costs all requests, as far as known.

        Before the first trial a forward is taken to reach the ceiling while it stages.
        """
        return self._cost.forwards(self._unmeasured) * self.forward_s

    def doubt(self) -> None:
        """A plan was refused as too dear, so nothing new will be measured: believe it half."""
        self._cost.doubt(self._unmeasured)

    @property
    def _unmeasured(self) -> float:
        return (self.ceiling - 1) / _START

    def _first(self) -> float:
        """Where to begin: so slow that it stays under the ceiling even if nothing overlaps."""
        known = [carried for carried in map(self._carried, _SHARED) if carried]
        return (self.ceiling - 1) * min(known) if known else _START

    def _line_rate(self) -> float:
        """Experts per forward that every link carries at all; unbounded where unknown."""
        return min(
            (carried for carried in map(self._carried, _SHARED) if carried), default=_FASTEST
        )

    def _carried(self, link: Link) -> float:
        """Experts per forward of a rank or a node; 0 where unknown."""
        return self._links.bytes_per_s(link) * self.bubble_s / self._expert_bytes


def _demand_durations(message: str, **durations: float) -> None:
    for name, value in durations.items():
        if not 0 <= value <= _LONGEST_S:
            raise RemoteProtocolError(
                f"{message}: {name} is {value}, expected 0 to {_LONGEST_S} seconds"
            )


class _Cost:
    """What one round costs, in forwards without transfers.

    A round in every `stride` forwards makes each longer by a share `excess`; so a round costs
    excess x stride. Least squares through the origin over past trials: how long forwards take on a
    busy machine sways whatever the stride, so slow trials, which multiply that by many forwards,
    weigh little beside faster ones.
    """

    def __init__(self) -> None:
        self._forwards = 0.0
        self._weight = 0.0

    def learn(self, stride: int, excess: float) -> None:
        """Add a trial."""
        excess = min(excess, _WORST - 1)
        past, weight = _MEMORY * self._weight, 1 / stride**2
        known = self._forwards if self._weight else 0.0
        self._weight = past + weight
        self._forwards = (past * known + weight * excess * stride) / self._weight

    def forwards(self, unmeasured: float) -> float:
        """The cost, never negative; `unmeasured` before the first trial."""
        return max(0.0, self._forwards) if self._weight else unmeasured

    def doubt(self, unmeasured: float) -> None:
        """Go half of the way back to what is believed without any measurement, if that is less."""
        if self._forwards > unmeasured:
            self._forwards = (self._forwards + unmeasured) / 2
