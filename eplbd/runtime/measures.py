"""What eplbd measures: every metric's name, labels, meaning and source.

Owns the tables that the exposition, `METRICS.md`, the dashboard and the alerts agree with. Names
follow Prometheus' rules: base units, `_total` on what only grows, moments as unix time. No label
has more values than a deployment has layers, ranks or policies: experts are no label. Must not know
how figures are served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from eplbd.core.group import Phase
from eplbd.core.messages import WIRE_VERSION
from eplbd.core.views import GroupOverview, RankOverview
from eplbd.runtime import readings as r
from eplbd.runtime.between import BETWEEN
from eplbd.runtime.measure import Measure
from eplbd.runtime.readings import Ended, Sample, Seen


@dataclass(frozen=True, slots=True)
class Spread:
    """A histogram of what the daemon's own lines tell."""

    name: str
    labels: tuple[str, ...]
    about: str
    read: Callable[[Ended], Iterable[Sample]]
    buckets: tuple[float, ...]

    kind = "histogram"


def _daemon(name: str, about: str, value: Callable[[Seen], float]) -> Measure:
    return Measure(name, (), about, r.one(value))


def _group(name: str, about: str, value: Callable[[GroupOverview], float | None]) -> Measure:
    return Measure(name, ("group",), about, r.group(value))


def _groups(
    name: str, about: str, values: Callable[[GroupOverview], Iterable[Sample]], *labels: str
) -> Measure:
    return Measure(name, ("group", *labels), about, r.groups(values))


def _rank(name: str, about: str, value: Callable[[RankOverview], float | None]) -> Measure:
    return Measure(name, ("group", "rank"), about, r.ranks(value))


def _moment(name: str, about: str, age: Callable[[RankOverview], float | None]) -> Measure:
    return Measure(name, ("group", "rank"), about, r.moments(age))


MEASURES: tuple[Measure, ...] = (
    Measure(
        "eplbd_build_info",
        ("version", "wire"),
        "Always 1; the release, and the newest wire version that it speaks.",
        lambda s: [((s.version, str(WIRE_VERSION)), 1)],
    ),
    _daemon(
        "eplbd_config_last_reload_successful",
        "Whether the configuration in force is the one in the file, as of the last reload.",
        lambda s: not s.statistics.reload_failed,
    ),
    _daemon(
        "eplbd_groups", "EP groups that this daemon serves.", lambda s: s.statistics.node.groups
    ),
    _daemon(
        "eplbd_sessions",
        "Workers that have a session, over all groups.",
        lambda s: s.statistics.node.workers,
    ),
    _daemon(
        "eplbd_messages_received_total",
        "Messages that workers sent.",
        lambda s: s.statistics.link.received,
    ),
    _daemon(
        "eplbd_received_bytes_total",
        "Size of these messages.",
        lambda s: s.statistics.link.received_bytes,
    ),
    _daemon("eplbd_messages_sent_total", "Messages to workers.", lambda s: s.statistics.link.sent),
    Measure(
        "eplbd_messages_dropped_total",
        ("reason",),
        "Messages to workers that were not sent: their queue was full, or they cannot be "
        "reached. Control is sent again.",
        r.named(r.dropped),
    ),
    Measure(
        "eplbd_messages_refused_total",
        ("reason",),
        "Messages of workers that were not taken: of peers without a session (unknown), "
        "undecodable (garbled), contradicting what is known (rejected), or heat beyond the share "
        "of its group (excess).",
        r.named(r.refused),
    ),
    _daemon(
        "eplbd_steps_total",
        "Events that the core was stepped through.",
        lambda s: s.statistics.steps,
    ),
    _daemon(
        "eplbd_slowest_step_seconds",
        "The longest of them since the start; nothing else is done meanwhile.",
        lambda s: s.statistics.slowest_step_s,
    ),
    _daemon(
        "eplbd_log_lines_total", "Lines written to the log.", lambda s: s.statistics.log.written
    ),
    _daemon(
        "eplbd_log_lines_lost_total",
        "Lines that the log's reader was too slow for.",
        lambda s: s.statistics.log.lost,
    ),
    _daemon(
        "eplbd_recorded_steps_total",
        "Steps of heat taken down for the record on disk.",
        lambda s: s.statistics.recorder.steps,
    ),
    _daemon(
        "eplbd_recorded_steps_dropped_total",
        "Steps that the record had no room for in its queue.",
        lambda s: s.statistics.recorder.dropped_steps,
    ),
    _daemon(
        "eplbd_record_failures_total",
        "Writes to the record that the disk refused.",
        lambda s: s.statistics.recorder.failures,
    ),
    _daemon(
        "eplbd_persist_failures_total",
        "Settled placements that the state directory refused; the workers have them.",
        lambda s: s.statistics.node.not_stored,
    ),
    Measure(
        "eplbd_alarm",
        ("group", "alarm"),
        "1 for what the daemon's own watch-dogs found wrong and still is; without a group, 0 for "
        "every alarm that there may be, or 1 for one of the daemon itself.",
        r.alarms,
    ),
    Measure(
        "eplbd_policy_results_total",
        ("policy", "outcome"),
        "Answers of policies, shadows among them.",
        r.results,
    ),
    Measure(
        "eplbd_policy_suspended",
        ("policy", "role"),
        "Whether a policy failed too often and is not asked any more.",
        r.suspended,
    ),
    _groups(
        "eplbd_group_phase",
        "1 for the phase the group is in: a rank is missing (gathering), not all have said "
        "where they stand (recovering), ready, or frozen.",
        lambda g: r.chosen(Phase, g.phase),
        "phase",
    ),
    _groups("eplbd_group_mode", "1 for the mode in force.", lambda g: [((g.mode,), 1)], "mode"),
    _group(
        "eplbd_paused",
        "Whether no epoch may begin although the group is ready.",
        lambda g: bool(g.paused),
    ),
    _group("eplbd_term", "Term that the group is led under.", lambda g: g.term),
    _group("eplbd_epoch", "Epoch of the placement in force.", lambda g: g.epoch),
    _group(
        "eplbd_forwards_total", "Forwards of the engine since it attached.", lambda g: g.forward
    ),
    Measure(
        "eplbd_last_commit_timestamp_seconds",
        ("group",),
        "When an epoch settled last; absent until one has.",
        r.committed,
    ),
    _groups(
        "eplbd_epochs_total",
        "Epochs that ended.",
        lambda g: r.counted(r.OUTCOMES, g.totals.epochs),
        "outcome",
    ),
    _group(
        "eplbd_epoch_age_seconds",
        "How long the epoch under way has been under way; 0 between epochs.",
        lambda g: g.epoch_now.age_s if g.epoch_now else 0,
    ),
    _groups(
        "eplbd_cycles_total",
        "Rebalances that ended.",
        lambda g: r.counted(r.CYCLES, g.totals.cycles),
        "outcome",
    ),
    _group(
        "eplbd_stall_seconds_total",
        "Time that forwards waited for a commit, of each epoch the slowest rank's.",
        lambda g: g.totals.stall_s,
    ),
    _groups(
        "eplbd_moves_total",
        "Slots written by settled epochs, by how far the expert came: within the rank, the "
        "node, or over the network.",
        lambda g: r.by_link(g, 1),
        "link",
    ),
    _groups(
        "eplbd_transfer_bytes_total",
        "Weights that these moves brought.",
        lambda g: r.by_link(g, g.expert_bytes),
        "link",
    ),
    _groups(
        "eplbd_imbalance_ratio",
        "PAR, the hottest rank's load over the mean, 1 is perfect: observed over the window, "
        "and what the newest accepted plan promised.",
        r.imbalance,
        "layer",
        "of",
    ),
    _groups(
        "eplbd_cycle_imbalance_ratio",
        "Mean PAR of the newest rebalance that moved experts and was measured: before it, as "
        "predicted, and as realised.",
        r.cycle,
        "of",
    ),
    _groups(
        "eplbd_shadow_imbalance_ratio",
        "Mean PAR on a shadow's placement, and the group's own on the same steps.",
        r.shadows,
        "policy",
        "of",
    ),
    _group("eplbd_window_steps", "Steps of heat that a plan would be made on.", lambda g: g.window),
    _groups(
        "eplbd_heat_steps_total",
        "Forwards whose heat came: of all ranks (complete), without tokens (dummy), "
        "contradicting each other, or never of all ranks (incomplete); in this term.",
        r.steps,
        "outcome",
    ),
    _group(
        "eplbd_budget_experts",
        "Experts that an epoch may bring to a rank.",
        lambda g: g.budget.experts_per_rank,
    ),
    _group(
        "eplbd_budget_stride_forwards",
        "Forwards per round; a round brings a rank one expert.",
        lambda g: g.budget.stride,
    ),
    _group(
        "eplbd_forward_seconds",
        "Mean time of a forward without transfers; absent while unknown.",
        lambda g: g.budget.forward_s or None,
    ),
    _group(
        "eplbd_forward_inflation_ratio",
        "Time of a forward with transfers over one without, in the last epoch; absent before "
        "the first.",
        lambda g: g.budget.inflation or None,
    ),
    _group(
        "eplbd_forward_inflation_ceiling_ratio",
        "The most that it may be; beyond, moves slow down.",
        lambda g: g.budget.inflation_ceiling,
    ),
    _groups(
        "eplbd_link_bytes_per_second",
        "What plans take links to carry, each way: a rank with its node (node), a node with all "
        "others (network). Configured or learnt; absent while nothing limits.",
        r.carried,
        "link",
    ),
    _groups(
        "eplbd_workers", "Ranks by how far they are from serving as members.", r.states, "state"
    ),
    _moment(
        "eplbd_worker_last_seen_timestamp_seconds",
        "When the rank was heard of last.",
        lambda rank: rank.last_seen_age_s,
    ),
    _moment(
        "eplbd_heat_last_report_timestamp_seconds",
        "When its newest report of heat came.",
        lambda rank: rank.heat_age_s,
    ),
    _rank(
        "eplbd_heat_reports_total",
        "Reports of heat taken, in this session.",
        lambda rank: rank.reports,
    ),
    _rank(
        "eplbd_heat_steps_lost_total",
        "Steps of heat that the worker could not hand on.",
        lambda rank: rank.lost_steps,
    ),
    _rank(
        "eplbd_worker_messages_lost_total",
        "Messages of this session that were lost on the way; heat is not sent again.",
        lambda rank: rank.lost_reports,
    ),
    _rank(
        "eplbd_worker_lag_forwards",
        "Forwards that the rank is behind the newest, as far as it has said.",
        lambda rank: rank.forward_lag,
    ),
    _rank(
        "eplbd_rank_speed_ratio",
        "How fast plans take the rank to be, declared or found; 1 is as fast as the others.",
        lambda rank: rank.speed,
    ),
    *BETWEEN,
)

SPREADS: tuple[Spread, ...] = (
    Spread(
        "eplbd_epoch_duration_seconds",
        ("group", "phase"),
        "Phases of settled epochs.",
        r.phases,
        (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    ),
    Spread(
        "eplbd_round_duration_seconds",
        ("group",),
        "Rounds of settled epochs: of each epoch the mean.",
        r.rounds,
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    ),
    Spread(
        "eplbd_bubble_used_ratio",
        ("group",),
        "Share of the time in which an epoch stages, between forwards or beside them, that its "
        "rounds took, on the rank that used most; of settled epochs.",
        r.used,
        (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    ),
    Spread(
        "eplbd_policy_duration_seconds",
        ("policy",),
        "Time from a question to a policy's answer, or until it was given up.",
        r.planned,
        (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    ),
)

DECLARED: tuple[Measure | Spread, ...] = (*MEASURES, *SPREADS)
"""All there is."""
