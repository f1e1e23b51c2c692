"""What can be seen of a daemon, as read-only values: metrics, event stream and control tell these.

Owns their names and units. Must not know how they are found (that is `overview`), nor who looks.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from eplbd.core.alarms import Alarm
    from eplbd.core.ledger import LedgerStatistics
    from eplbd.core.totals import Totals


class RankState(enum.StrEnum):
    """How far a rank is from serving as a member."""

    ABSENT = "absent"
    """Nothing was heard of it in this life of the group."""
    GREETING = "greeting"
    """It said hello, but not yet where it stands under this term."""
    SETTLING = "settling"
    """It said where it stands, and that is not idle on the group's map."""
    ATTACHED = "attached"
    LOST = "lost"
    """It was there and fell silent, left, or cannot be reached."""


@dataclass(frozen=True, slots=True)
class RankOverview:
    """One rank. Ages in seconds; None where there was nothing yet."""

    rank: int
    state: RankState
    node: str
    """Name of its host; empty while it is absent."""
    forward: int
    forward_lag: int
    """Forwards that it is behind the group's newest, as far as it has said."""
    last_seen_age_s: float | None
    heat_age_s: float | None
    """Since its newest report of heat."""
    reports: int
    """Of heat, in this session."""
    lost_reports: int
    """Messages of this session that were lost on the way; control is sent again, heat is not."""
    lost_steps: int
    """Steps of heat that the worker could not hand on."""
    staged_bytes: int
    """That the epoch under way brings to this rank; 0 between epochs."""
    waited_for: bool
    """Whether the epoch under way waits for this rank."""
    speed: float = 1.0
    """That plans take it to have, declared or found; at half of it, load counts twice."""


@dataclass(frozen=True, slots=True)
class BudgetOverview:
    """What transfers may use, as the pacer holds it."""

    experts_per_rank: int
    """That an epoch may bring to a rank."""
    stride: int
    """Forwards per round; a round brings a rank one expert."""
    inflation_ceiling: float
    """Most that a forward with transfers may take, as a ratio to one without."""
    inflation: float
    """The same ratio as measured in the last epoch; 0 before the first."""
    forward_s: float
    """Mean time of a forward without transfers; 0 where unknown."""
    max_moves: int
    """Of one rebalance; 0 is no limit."""
    bubble_used: float = 0.0
    """Share of its bubbles that the last epoch's rounds took, 0 to 1; 0 where nothing is known."""
    node_bytes_per_s: float = 0.0
    """What a rank has to the others of its node, configured or learnt; 0 where nothing limits."""
    network_bytes_per_s: float = 0.0
    """What a node has to all others; 0 where nothing limits, or the group is on one node."""


@dataclass(frozen=True, slots=True)
class EpochOverview:
    """The epoch under way."""

    epoch: int
    phase: str
    reason: str
    """Why it will be given up, or is being armed again; empty if all is well."""
    age_s: float
    attempt: int
    at: int
    """Forward that flips, in the newest attempt; 0 before the first."""
    moves: int
    bytes: int
    """That cross ranks."""
    waiting: tuple[int, ...]
    """Ranks whose answer is missing."""
    overdue: bool
    """Whether it can only wait, and has waited too long."""


@dataclass(frozen=True, slots=True)
class ShadowOverview:
    """A policy beside the active one, by its newest score; figures are 0 before the first."""

    name: str
    outcome: str
    par_mean: float
    active_par_mean: float
    """Of the group itself, on the same steps."""
    moves: int
    suspended: bool


@dataclass(frozen=True, slots=True, eq=False)
class GroupOverview:
    """One EP group. Arrays are read-only; those of loads are None while there is no heat."""

    name: str
    incarnation: str
    term: int
    epoch: int
    """Of the placement in force."""
    forward: int
    mode: str
    phase: str
    """gathering, recovering, ready or frozen."""
    frozen: str
    """Why the group froze by itself; empty if it did not."""
    paused: str
    """Why nothing is begun although the group is ready; empty if it may be."""
    ranks: tuple[RankOverview, ...]
    nodes: int
    layers: int
    experts: int
    slots_per_rank: int
    expert_bytes: int
    digest: str
    """Of the placement in force; empty while there is none."""
    stage: str
    """Of the rebalance: resting, planning, moving or measuring; empty while nobody leads."""
    observed_par: NDArray[np.float64] | None
    """`[layers]`, mean over the window, under whatever maps served it."""
    planned_par: NDArray[np.float64] | None
    """`[layers]` that the newest accepted plan promised, None if there was none in this term."""
    rank_load: NDArray[np.float64] | None
    """`[layers, ranks]` tokens in the window, relative to the mean of the layer's ranks."""
    heat: LedgerStatistics | None
    """Counts of the books of heat, of this term."""
    window: int
    """Steps of heat that a plan would be made on."""
    epoch_now: EpochOverview | None
    budget: BudgetOverview
    last_commit_age_s: float | None
    """Since an epoch settled, None if none did since the daemon started."""
    totals: Totals
    """Sums since the daemon started, and the newest lines."""
    shadows: tuple[ShadowOverview, ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since start, and what is there now."""

    groups: int
    workers: int
    unknown: int
    garbled: int
    rejected: int
    excess: int
    """Reports of heat beyond their group's share."""
    gaps: int
    repeats: int
    not_stored: int
    """Settled placements that the state directory refused."""
    suspended: bool
    shadows_suspended: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RelayOverview:
    """A group that another daemon leads and this one relays."""

    group: str
    leader: str
    """Endpoint of the daemon that leads it."""
    linked: bool
    """Whether it was heard of within `session.silence_s`."""
    last_heard_age_s: float | None
    """None if it never was."""
    ranks: tuple[int, ...]
    """Those on this node, ascending."""
    forwarded: int
    """Messages sent up, heat of several ranks as one."""
    reason: str
    """Why it is not linked; empty while it is."""


@dataclass(frozen=True, slots=True)
class NodeOverview:
    """The daemon."""

    now: float
    """Seconds, monotonic: what ages are counted from."""
    stopping: bool
    policy: str
    suspended: bool
    """Whether the policy failed too often and is not asked any more."""
    results: Mapping[tuple[str, str], int]
    """What came of questions, by policy and outcome."""
    alarms: tuple[Alarm, ...]
    """That hold now, in the order of raising."""
    groups: tuple[GroupOverview, ...]
    """That this daemon leads."""
    relays: tuple[RelayOverview, ...] = ()
