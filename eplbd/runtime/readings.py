"""Where a metric's figures are read: from a look at the daemon, or from the lines that it writes.

Owns the way from the daemon's values to figures with labels. Must not know names of metrics, nor
how figures are served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from eplbd.core.alarms import AlarmName
from eplbd.core.events import CycleEnded, EpochEnded, ShadowScored
from eplbd.core.topology import Link
from eplbd.core.views import GroupOverview, NodeOverview, RankOverview, RankState

if TYPE_CHECKING:
    from eplbd.runtime.daemon import DaemonStatistics

Sample: TypeAlias = tuple[tuple[str, ...], float]
"""Values of the labels, in their order, and the figure."""

Ended: TypeAlias = EpochEnded | CycleEnded | ShadowScored


@dataclass(frozen=True, slots=True)
class Seen:
    """The daemon at one moment. unix: seconds since 1970, of that moment."""

    statistics: DaemonStatistics
    overview: NodeOverview
    version: str
    unix: float


PARS = ("before", "predicted", "realised")
OUTCOMES = ("settled", "aborted")
CYCLES = ("applied", "partly", "unchanged", "refused", "recorded", "failed")
RESULTS = ("ok", "invalid", "raised", "timeout", "crashed", "memory")


def one(value: Callable[[Seen], float]) -> Callable[[Seen], Iterator[Sample]]:
    """One figure of the daemon."""

    def read(seen: Seen) -> Iterator[Sample]:
        yield (), value(seen)

    return read


def named(value: Callable[[Seen], Mapping[str, float]]) -> Callable[[Seen], Iterator[Sample]]:
    """Figures of the daemon by one label."""

    def read(seen: Seen) -> Iterator[Sample]:
        return (((name,), figure) for name, figure in value(seen).items())

    return read


def group(
    value: Callable[[GroupOverview], float | None],
) -> Callable[[Seen], Iterator[Sample]]:
    """One figure per group; a group that has none is left out."""

    def read(seen: Seen) -> Iterator[Sample]:
        figures = ((group.name, value(group)) for group in seen.overview.groups)
        return (((name,), figure) for name, figure in figures if figure is not None)

    return read


def groups(
    value: Callable[[GroupOverview], Iterable[Sample]],
) -> Callable[[Seen], Iterator[Sample]]:
    """Figures per group and further labels."""

    def read(seen: Seen) -> Iterator[Sample]:
        for group in seen.overview.groups:
            yield from (((group.name, *labels), figure) for labels, figure in value(group))

    return read


def ranks(
    value: Callable[[RankOverview], float | None],
) -> Callable[[Seen], Iterator[Sample]]:
    """One figure per rank that was heard of."""

    def read(seen: Seen) -> Iterator[Sample]:
        for group in seen.overview.groups:
            for rank in group.ranks:
                figure = None if rank.state is RankState.ABSENT else value(rank)
                if figure is not None:
                    yield (group.name, str(rank.rank)), figure

    return read


def moments(
    age: Callable[[RankOverview], float | None],
) -> Callable[[Seen], Iterator[Sample]]:
    """Ages of ranks as unix time, so that a look at an old figure does not make it young."""

    def read(seen: Seen) -> Iterator[Sample]:
        return ((labels, seen.unix - figure) for labels, figure in ranks(age)(seen))

    return read


def counted(known: Iterable[str], counts: Mapping[str, int]) -> Iterator[Sample]:
    """Counts by name; those that are known begin at 0, so that their first increase is seen."""
    return (((name,), count) for name, count in ({**dict.fromkeys(known, 0), **counts}).items())


def chosen(names: Iterable[str], chosen: str) -> Iterator[Sample]:
    """A state as one series per value that it may have: 1 for the one that holds."""
    return (((name,), float(name == chosen)) for name in names)


def committed(seen: Seen) -> Iterator[Sample]:
    """When each group's newest epoch settled."""
    for group in seen.overview.groups:
        if group.last_commit_age_s is not None:
            yield (group.name,), seen.unix - group.last_commit_age_s


def imbalance(group: GroupOverview) -> Iterator[Sample]:
    """PAR by layer, and whether it is the observed or the planned one."""
    for of, layers in (("observed", group.observed_par), ("planned", group.planned_par)):
        if layers is not None:
            yield from (((str(layer), of), float(par)) for layer, par in enumerate(layers))


def cycle(group: GroupOverview) -> Iterator[Sample]:
    """PAR of the newest rebalance that was measured, by `PARS`, as far as it was found."""
    cycle = group.totals.cycle
    if cycle is not None:
        figures = (cycle.par_before, cycle.par_predicted, cycle.par_realised)
        yield from (((of,), par) for of, par in zip(PARS, figures, strict=True) if par)


def shadows(group: GroupOverview) -> Iterator[Sample]:
    """PAR by shadow, and whether it is the shadow's or the group's own."""
    for shadow in group.shadows:
        if shadow.par_mean:
            yield (shadow.name, "shadow"), shadow.par_mean
            yield (shadow.name, "active"), shadow.active_par_mean


def by_link(group: GroupOverview, unit: int) -> Iterator[Sample]:
    """Moves by link, in units of `unit`."""
    return (((link.name.lower(),), group.totals.moves[link] * unit) for link in Link)


def steps(group: GroupOverview) -> Iterator[Sample]:
    """Forwards by what became of their heat."""
    heat = group.heat
    if heat is not None:
        yield ("complete",), heat.steps - heat.dummy_steps - heat.mismatches
        yield ("dummy",), heat.dummy_steps
        yield ("contradictory",), heat.mismatches
        yield ("incomplete",), heat.lost_steps


def results(seen: Seen) -> Iterator[Sample]:
    """Answers by policy and outcome, all outcomes from 0."""
    active, results = seen.overview.policy, seen.overview.results
    policies = dict.fromkeys([active, *(policy for policy, _ in results)])
    for policy in policies:
        for outcome in RESULTS:
            yield (policy, outcome), results.get((policy, outcome), 0)


def suspended(seen: Seen) -> Iterator[Sample]:
    """Every policy's circuit, by policy and role."""
    yield (seen.overview.policy, "active"), seen.overview.suspended
    shadows = {shadow.name: shadow for group in seen.overview.groups for shadow in group.shadows}
    yield from (((name, "shadow"), shadow.suspended) for name, shadow in shadows.items())


def states(group: GroupOverview) -> Iterator[Sample]:
    """Ranks by state."""
    states = [rank.state for rank in group.ranks]
    return (((state,), states.count(state)) for state in RankState)


def alarms(seen: Seen) -> Iterator[Sample]:
    """What holds, by group and alarm; the daemon's own have no group."""
    figures = {("", name.value): 0.0 for name in AlarmName}
    figures |= {(alarm.group, alarm.name.value): 1.0 for alarm in seen.overview.alarms}
    yield from figures.items()


def refused(seen: Seen) -> dict[str, float]:
    """Messages that were not taken, by reason."""
    node = seen.statistics.node
    return {
        "unknown": node.unknown,
        "garbled": node.garbled,
        "rejected": node.rejected,
        "excess": node.excess,
    }


def dropped(seen: Seen) -> dict[str, float]:
    """Messages that were not sent, by reason."""
    link = seen.statistics.link
    return {"full": link.dropped, "unreachable": link.unreachable}


def carried(group: GroupOverview) -> Iterator[Sample]:
    """Bytes per second, of links that limit."""
    budget = group.budget
    known = {"node": budget.node_bytes_per_s, "network": budget.network_bytes_per_s}
    return (((link,), rate) for link, rate in known.items() if rate)


def phases(ended: Ended) -> Iterator[Sample]:
    """Of a settled epoch, by phase."""
    if isinstance(ended, EpochEnded) and ended.outcome == "settled":
        yield (ended.group, "prepare"), ended.prepare_s
        yield (ended.group, "stage"), ended.stage_s
        yield (ended.group, "commit"), ended.commit_s


def rounds(ended: Ended) -> Iterator[Sample]:
    """Of a settled epoch, the mean of its rounds."""
    if isinstance(ended, EpochEnded) and ended.outcome == "settled" and ended.rounds:
        yield (ended.group,), ended.stage_s / ended.rounds


def used(ended: Ended) -> Iterator[Sample]:
    """Of a settled epoch, the share of its bubbles, where it is known."""
    if isinstance(ended, EpochEnded) and ended.outcome == "settled" and ended.bubble_used:
        yield (ended.group,), ended.bubble_used


def planned(ended: Ended) -> Iterator[Sample]:
    """How long a policy took."""
    if isinstance(ended, CycleEnded) and ended.policy_s:
        yield (ended.policy,), ended.policy_s
    if isinstance(ended, ShadowScored) and ended.plan_s:
        yield (ended.policy,), ended.plan_s
