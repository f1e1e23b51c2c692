"""What a trace shows about balancing: loads with and without it, and what the gain depends on.

Owns the measurements behind a diagnosis. Must not know what is concluded from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eplbd.core.heat import Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.offline import layouts
from eplbd.offline.forecast import Forecast, alike, forecast
from eplbd.offline.guests import Guest
from eplbd.offline.links import Transfer, transfer
from eplbd.offline.measure import Gain, gained, joined, loads
from eplbd.offline.settings import Task
from eplbd.offline.simulate import Result, simulate
from eplbd.offline.windows import Rows

_LAGS = 8


@dataclass(frozen=True, slots=True)
class Redundancy:
    """slots: per rank. gain: with so many. rank_bytes: of weights on a rank, beyond no copies."""

    slots: int
    gain: Gain
    rank_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Everything that was measured.

    off_par: without a balancer, experts in order and without copies. on: planned on the window
    before. oracle: planned on the judged window itself. static: planned once, on the first window.
    ageing: gain of a plan that is 1, 2, ... windows old. first, later: cost of the first plan and
    of the last, None where there was but one.
    """

    task: Task
    off_par: float
    on: Gain
    oracle: Gain
    static: Gain
    forecast: Forecast
    redundancy: tuple[Redundancy, ...]
    ageing: tuple[float, ...]
    first: Transfer
    later: Transfer | None
    moves_per_layer: tuple[float, ...]
    phases_alike: float | None
    failures: tuple[str, ...]


def gather(task: Task, done: Callable[[], object]) -> Evidence:
    """Measure; `done` is called about `effort(task)` times."""
    guest, windows, topology = task.guests[0], task.windows, task.topology
    off = _off(task)
    result = simulate(windows, guest, topology, task.initial, task.budget, done=done)
    placements = [one.placement for one in result.judged]
    following = windows[1:]
    oracle = [_oracle(guest, task, window, done) for window in following]
    changed = [task.initial, *placements]
    return Evidence(
        task=task,
        off_par=joined([loads(off, window) for window in following]).total,
        on=_gain(off, placements, following),
        oracle=_gain(off, oracle, following),
        static=_gain(off, [placements[0]] * len(following), following),
        forecast=forecast(windows, task.recorded.topk),
        redundancy=tuple(_sweep(task, off, result, done)),
        ageing=_ageing(off, placements, windows),
        first=_cost(task, changed[0], changed[1]),
        later=_cost(task, changed[-2], changed[-1]) if len(placements) > 1 else None,
        moves_per_layer=tuple(one.moves / task.recorded.layers for one in result.judged),
        phases_alike=_phases(task),
        failures=tuple(result.failures),
    )


def effort(task: Task) -> int:
    """How many plans `gather` asks for."""
    return (len(task.windows) - 1) * (len(_candidates(task)) + 1)


def _off(task: Task) -> Placement:
    recorded = task.recorded
    return layouts.unbalanced(recorded.layers, recorded.experts, task.topology.ranks)


def _gain(off: Placement, on: list[Placement], windows: list[Rows]) -> Gain:
    """Gain of each placement on its window."""
    return gained(
        [loads(off, window) for window in windows],
        [loads(placement, window) for placement, window in zip(on, windows, strict=True)],
    )


def _oracle(guest: Guest, task: Task, window: Rows, done: Callable[[], object]) -> Placement:
    answer = guest.ask(Heat(window, "all"), task.topology, task.initial, task.budget)
    done()
    return answer.placement


def _candidates(task: Task) -> list[int]:
    """Slots per rank to try: none redundant, some more, and what was asked for."""
    least = -(-task.recorded.experts // task.topology.ranks)
    most = min(task.recorded.experts, max(least + 4, task.topology.slots_per_rank))
    tried = {least, least + 1, least + 2, least + 4, task.topology.slots_per_rank}
    return sorted(slots for slots in tried if slots <= most)


def _sweep(
    task: Task, off: Placement, asked: Result, done: Callable[[], object]
) -> list[Redundancy]:
    windows, recorded, found = task.windows, task.recorded, []
    least = _candidates(task)[0]
    for slots in _candidates(task):
        if slots == task.topology.slots_per_rank:
            placements = [one.placement for one in asked.judged]
        else:
            topology = Topology(task.topology.ranks, slots, task.topology.node_of)
            start = layouts.initial("linear", recorded.layers, recorded.experts, topology, None)
            swept = simulate(windows, task.guests[0], topology, start, task.budget, done=done)
            placements = [one.placement for one in swept.judged]
        extra = (slots - least) * recorded.layers * task.budget.expert_bytes
        found.append(Redundancy(slots, _gain(off, placements, windows[1:]), extra))
    return found


def _ageing(off: Placement, placements: list[Placement], windows: list[Rows]) -> tuple[float, ...]:
    """Mean gain of plans that are 1, 2, ... windows old; window t's plan is `placements[t]`."""
    gains = []
    for lag in range(1, min(_LAGS, len(placements)) + 1):
        older = placements[: len(placements) - lag + 1]
        gains.append(_gain(off, older, windows[lag:]).mean)
    return tuple(gains)


def _cost(task: Task, before: Placement, after: Placement) -> Transfer:
    return transfer(before, after, task.topology, task.bandwidth, task.budget.expert_bytes)


def _phases(task: Task) -> float | None:
    """How alike prefill and decode heat the experts; None where the trace does not tell."""
    phases, rows = task.recorded.phases, task.recorded.rows
    prefill, decode = rows[phases == 1], rows[phases == 2]
    return alike(prefill, decode) if len(prefill) and len(decode) else None
