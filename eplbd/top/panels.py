"""The other parts of the picture, each as lines of a width: who is there, what moved, what it cost.

Owns what is worth a line where there is not room for all: what is wrong comes first. Must not know
where a part stands nor how a tone looks.
"""

from __future__ import annotations

import time

from eplbd.core.events import EpochEnded
from eplbd.core.views import RankOverview, RelayOverview
from eplbd.top.history import History, Story
from eplbd.top.wording import Line, Span, duration, fitted, left, ratio, right, size, tight
from eplbd.wire.stream import Alarm, Group, Noted, Snapshot

_TONES = {
    "attached": "good", "ready": "good", "settled": "good", "applied": "good",
    "settling": "warn", "greeting": "warn", "gathering": "warn", "recovering": "warn",
    "aborted": "warn", "partly": "warn", "warning": "warn",
    "lost": "bad", "absent": "bad", "frozen": "bad", "failed": "bad", "error": "bad",
}  # fmt: skip
_ORDER = ("lost", "absent", "greeting", "settling", "attached")
_STALE_S, _LAGGING = 10.0, 4
"""Age of heat and forwards behind from which on a rank is set before others."""

_BAR = 10
_ROOMY = 60
"""Characters from which on a line has room for a reason behind its figures."""


def header_lines(history: History, group: Group | None, silence_s: float, width: int) -> list[Line]:
    """Two lines: the daemon, and the group that is shown."""
    snapshot = history.snapshot
    if snapshot is None:
        return [(Span("eplbd: nothing heard yet", "warn"),), ()]
    lines = [_daemon(snapshot, silence_s)]
    if group is None and snapshot.relays:
        lines.append(tuple(span for relay in snapshot.relays for span in _relay(relay)))
    elif group is None:
        lines.append((Span("no group: no worker has said hello to this daemon", "warn"),))
    else:
        lines.append(_group(group, snapshot))
    return [fitted(line, width) for line in lines]


def _daemon(snapshot: Snapshot, silence_s: float) -> Line:
    line = [
        Span(f"eplbd {snapshot.version}", "head"),
        Span(f" on {snapshot.host}, up {duration(snapshot.up_s)}  policy "),
        Span(snapshot.policy, "head"),
    ]
    if snapshot.suspended:
        line.append(Span(" SUSPENDED, hold took over", "bad"))
    if snapshot.groups:
        line += [span for relay in snapshot.relays if not relay.linked for span in _relay(relay)]
    if snapshot.stopping:
        line.append(Span("  stopping", "warn"))
    if silence_s > 0:
        line.append(Span(f"  NOT HEARD FOR {duration(silence_s)}", "bad"))
    return tuple(line)


def _relay(relay: RelayOverview) -> Line:
    """A group that is led elsewhere: its picture is at its leader's."""
    ranks = f"{len(relay.ranks)} ranks of"
    led = Span(f"led at {relay.leader}  ") if relay.linked else Span(f"{relay.reason}  ", "bad")
    return (Span(f"  relays {ranks} "), Span(f"{relay.group} ", "head"), led)


def _group(group: Group, snapshot: Snapshot) -> Line:
    place = ""
    if len(snapshot.groups) > 1:
        names = [each.name for each in snapshot.groups]
        place = f" ({names.index(group.name) + 1} of {len(names)})"
    phase = Span(group.phase, _TONES.get(group.phase, ""))
    line = [Span(group.name, "head"), Span(f"{place} "), phase]
    if group.paused:
        line.append(Span(f" PAUSED: {group.paused}", "warn"))
    if group.frozen:
        line.append(Span(f": {group.frozen}", "bad"))
    shape = f"{group.layers} layers, {len(group.ranks)} ranks, {group.experts} experts"
    if group.observed_par:
        mean = sum(group.observed_par) / len(group.observed_par)
        line.append(Span(f"  PAR {mean:.3f}", "head"))
    doing = f" {group.stage}" if group.stage else ""
    line.append(Span(f"  {group.mode}{doing}  epoch {group.epoch}  {shape}"))
    line.append(Span(f"  forward {group.forward:,}"))
    return tuple(line)


def ranks_title(group: Group) -> str:
    """How many ranks are in which state."""
    states = [str(rank.state) for rank in group.ranks]
    counted = [f"{states.count(state)} {state}" for state in reversed(_ORDER) if state in states]
    return "ranks: " + ", ".join(counted)


def ranks_lines(group: Group, width: int, height: int) -> list[Line]:
    """Lag, heat age and staging of each rank, the worst first."""
    ranks = sorted(group.ranks, key=_worst)
    shown, more = ranks[: height - 1], len(ranks) - (height - 1)
    head = "rank state     lag   seen   heat stage" + ("  lost  node" if width >= _ROOMY else "")
    lines: list[Line] = [(Span(head, "head"),)]
    for rank in shown:
        cells = [
            right(str(rank.rank), 4),
            Span(" "),
            left(rank.state, 8, _TONES[rank.state]),
            right(str(rank.forward_lag), 5),
            right(tight(duration(rank.last_seen_age_s)), 7),
            right(tight(duration(rank.heat_age_s)), 7),
            right(tight(size(rank.staged_bytes)) if rank.staged_bytes else "-", 6),
        ]
        if width >= _ROOMY:
            cells += [right(str(rank.lost_reports + rank.lost_steps), 6), Span("  " + rank.node)]
        lines.append(tuple(cells))
    if more > 0 and height > 2:
        lines[-1] = (Span(f"     and {more + 1} more", "dim"),)
    return [fitted(line, width) for line in lines]


def _worst(rank: RankOverview) -> tuple[int, bool, int, int]:
    """Coarse on purpose: a list whose order follows every tick cannot be read."""
    stale = rank.heat_age_s is None or rank.heat_age_s > _STALE_S
    place = 2 * _ORDER.index(rank.state) + (not stale)
    return place, not rank.waited_for, -(rank.forward_lag // _LAGGING), rank.rank


def epochs_title(group: Group) -> str:
    """How many epochs ended, by outcome."""
    counted = [f"{count} {outcome}" for outcome, count in sorted(group.epochs.items())]
    return "epochs: " + (", ".join(reversed(counted)) or "none yet")


def epochs_lines(group: Group, story: Story, width: int, height: int) -> list[Line]:
    """The epoch under way, and those that ended, newest first."""
    lines: list[Line] = [(Span("epoch outcome  moves   bytes   took", "head"),)]
    now = group.epoch_now
    if now is not None:
        waits = f", waits for rank {', '.join(map(str, now.waiting))}" if now.waiting else ""
        tone = "bad" if now.overdue else "warn"
        lines.append(
            (
                right(str(now.epoch), 5),
                Span(f" {now.phase} for {duration(now.age_s)}{waits} {now.reason}", tone),
            )
        )
    lines += (_epoch(line, width) for line in reversed(story.epochs))
    if len(lines) == 1:
        lines.append((Span("      nothing was moved", "dim"),))
    return [fitted(line, width) for line in lines[:height]]


def _epoch(line: EpochEnded, width: int) -> Line:
    cells = [
        right(str(line.epoch), 5),
        Span(" "),
        left(line.outcome, 8, _TONES.get(line.outcome, "")),
    ]
    if line.outcome != "settled":
        return (*cells, Span(f" {line.reason}", "dim"))
    detail = f"  {line.layers} layers in {line.rounds} rounds, {line.policy}"
    took = line.prepare_s + line.stage_s + line.commit_s
    return (
        *cells,
        right(str(line.moves), 6),
        right(tight(size(line.bytes)), 8),
        right(tight(duration(took)), 7),
        Span(detail if width >= _ROOMY else "", "dim"),
    )


def policies_lines(
    snapshot: Snapshot, group: Group, story: Story, width: int, height: int
) -> list[Line]:
    """The policy in charge by its last rebalance, and each shadow by its last score."""
    lines: list[Line] = [(Span("policy      outcome    PAR    vs moves", "head"),)]
    cycle = story.cycles[-1] if story.cycles else None
    name = left(snapshot.policy, 11, "bad" if snapshot.suspended else "head")
    if cycle is None:
        lines.append((name, Span(" in charge, no rebalance yet", "dim")))
    else:
        outcome = left(cycle.outcome, 9, _TONES.get(cycle.outcome, ""))
        figures = _figures(cycle.par_realised or cycle.par_predicted, cycle.par_before, cycle.moves)
        why = Span(f"  {cycle.reason}", "dim")
        lines.append((name, Span(" "), outcome, *figures, *((why,) if width >= _ROOMY else ())))
        if cycle.reason and width < _ROOMY:
            lines.append((why,))
    for shadow in group.shadows:
        state = "suspended" if shadow.suspended else shadow.outcome or "waiting"
        outcome = left(state, 9, "bad" if shadow.suspended else "dim")
        figures = _figures(shadow.par_mean, shadow.active_par_mean, shadow.moves)
        score = story.scores.get(shadow.name)
        reason = Span(f"  {score.reason}" if score and width >= _ROOMY else "", "dim")
        lines.append((left(shadow.name, 11), Span(" "), outcome, *figures, reason))
    return [fitted(line, width) for line in lines[:height]]


def _figures(par: float, against: float, moves: int) -> tuple[Span, Span, Span]:
    tone = "" if not par or not against else "good" if par < against else "warn"
    return right(ratio(par), 5, tone), right(ratio(against), 6), right(str(moves), 6)


def budget_lines(group: Group, width: int, height: int) -> list[Line]:
    """What transfers may use of the engine's time, and what they did use."""
    budget = group.budget
    room = budget.inflation_ceiling - 1.0
    used = max(0.0, budget.inflation - 1.0) / room if budget.inflation and room > 0 else 0.0
    filled = min(_BAR, round(used * _BAR))
    measured = f"{budget.inflation:.3f}" if budget.inflation else "not measured"
    limit = f" of {budget.max_moves}" if budget.max_moves else ""
    moving = group.epoch_now.moves if group.epoch_now else 0
    ago = "never" if group.last_commit_age_s is None else f"{duration(group.last_commit_age_s)} ago"
    pace = f"{budget.experts_per_rank} a rank, round each {budget.stride} forwards"
    took = f", {budget.bubble_used:.0%} of bubbles" if budget.bubble_used else ""
    known = budget.forward_s and width >= _ROOMY
    forward = f"  forward {budget.forward_s * 1e3:.1f} ms" if known else ""
    lines: list[Line] = [
        (
            Span(f"inflation {measured} of {budget.inflation_ceiling:.3f} "),
            Span("█" * filled + "░" * (_BAR - filled), "bad" if used > 1 else "good"),
        ),
        (Span(f"epoch: {pace}{took}"),),
        (Span(f"moving {moving}{limit}  last commit {ago}{forward}", "dim"),),
    ]
    return [fitted(line, width) for line in lines[:height]]


def notes_title(snapshot: Snapshot | None) -> str:
    """How many alarms are raised."""
    count = len(snapshot.alarms) if snapshot else 0
    return "notes" if not count else f"notes, {count} ALARM" + ("S" if count > 1 else "")


def notes_lines(history: History, width: int, height: int) -> list[Line]:
    """Alarms that hold, then what else was worth a line of the log, newest first."""
    alarms = history.snapshot.alarms if history.snapshot else ()
    lines = [_alarm(alarm) for alarm in alarms]
    lines += map(_note, reversed(history.notes))
    if not lines:
        return [(Span("nothing to remark", "dim"),)]
    return [fitted(line, width) for line in lines[:height]]


def _alarm(alarm: Alarm) -> Line:
    group = f" {alarm.group}" if alarm.group else ""
    why = f"{group} for {duration(alarm.age_s)}: {alarm.reason}"
    return Span(f"ALARM {alarm.name}", "bad"), Span(why)


def _note(note: Noted) -> Line:
    clock = time.strftime("%H:%M:%S", time.localtime(note.at_s))
    fields = " ".join(f"{name}={value}" for name, value in note.fields.items())
    return (
        Span(f"{clock} ", "dim"),
        Span(note.event, _TONES.get(note.level, "")),
        Span(f" {fields}"),
    )
