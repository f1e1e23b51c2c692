"""A daemon's life as its stream would tell it: any shape, with something of everything in it."""

from __future__ import annotations

import math

from eplbd.core.events import CycleEnded, EpochEnded, ShadowScored
from eplbd.core.views import (
    BudgetOverview,
    EpochOverview,
    RankOverview,
    RankState,
    ShadowOverview,
)
from eplbd.top.history import History
from eplbd.wire.stream import Alarm, Cycle, Epoch, Group, Noted, Shadow, Snapshot, Told

AT_S = 1_700_000_000.0
HOT_LAYER, HOT_RANK, LOST_RANK = 3, 1, 2


def rank(number: int) -> RankOverview:
    lost = number == LOST_RANK
    return RankOverview(
        rank=number,
        state=RankState.LOST if lost else RankState.ATTACHED,
        node=f"node-{number // 8}",
        forward=123_456,
        forward_lag=7 if number == 5 else 0,
        last_seen_age_s=12.5 if lost else 0.21,
        heat_age_s=None if lost else 0.4,
        reports=4_711,
        lost_reports=3 if number == 5 else 0,
        lost_steps=0,
        staged_bytes=88_000_000 if number % 3 == 0 else 0,
        waited_for=number == 5,
    )


def load(layer: int, number: int, ranks: int) -> int:
    """Percent of the mean: waves, and one hot spot."""
    if (layer, number) == (HOT_LAYER, HOT_RANK):
        return 231
    return round(100 + 35 * math.sin(layer * 0.7 + number * 6.28 * 3 / ranks))


def group(name: str = "default", *, layers: int = 58, ranks: int = 16, experts: int = 256) -> Group:
    loads = [[load(layer, number, ranks) for number in range(ranks)] for layer in range(layers)]
    observed = [max(row) / 100 for row in loads]
    return Group(
        name=name,
        incarnation="1",
        term=3,
        epoch=41,
        forward=1_234_567,
        mode="dynamic",
        phase="gathering",
        frozen="",
        paused="",
        nodes=2,
        layers=layers,
        experts=experts,
        slots_per_rank=17,
        expert_bytes=44_000_000,
        digest="0123456789abcdef",
        stage="moving",
        window=512,
        last_commit_age_s=42.0,
        ranks=tuple(map(rank, range(ranks))),
        epoch_now=EpochOverview(
            epoch=42, phase="stage", reason="", age_s=1.25, attempt=0, at=0, moves=12,
            bytes=528_000_000, waiting=(5, 7), overdue=False,
        ),
        budget=BudgetOverview(
            experts_per_rank=2, stride=4, inflation_ceiling=1.05, inflation=1.032, forward_s=0.0231,
            max_moves=0, bubble_used=0.37,
        ),
        shadows=(
            ShadowOverview("flashlb", "applied", 1.18, 1.29, 31, suspended=False),
            ShadowOverview("swift", "", 0.0, 0.0, 0, suspended=False),
            ShadowOverview("theirs", "failed", 1.4, 1.29, 0, suspended=True),
        ),
        observed_par=observed,
        planned_par=[1.1] * layers,
        rank_load=loads,
        epochs={"settled": 40, "aborted": 1},
        cycles={"applied": 9, "refused": 2},
    )  # fmt: skip


def snapshot(*groups: Group, at_s: float = AT_S) -> Snapshot:
    return Snapshot(
        at_s=at_s,
        stream=1,
        version="0.1.0",
        host="gpu-17",
        up_s=11_520.0,
        stopping=False,
        policy="incremental",
        suspended=False,
        results={"incremental": {"ok": 11}},
        groups=groups,
        alarms=(
            Alarm(name="rank-missing", group="default", reason="rank 2 of 16", age_s=12.5),
            Alarm(name="latency", group="default", reason="forwards take 1.2 times", age_s=90.0),
        ),
    )


def epoch(number: int, outcome: str = "settled", reason: str = "") -> EpochEnded:
    return EpochEnded(
        group="default", term=3, epoch=number, outcome=outcome, reason=reason, layers=6, moves=24,
        bytes=1_056_000_000, rounds=2, attempts=1, at=1_234_000, prepare_s=0.02, stage_s=2.8,
        commit_s=0.4, stall_s=0.0, policy="incremental",
    )  # fmt: skip


def cycle(outcome: str, reason: str = "", *, layers: tuple[float, ...] = ()) -> CycleEnded:
    return CycleEnded(
        group="default", policy="incremental", outcome=outcome, reason=reason, par_before=1.52,
        par_predicted=1.19, par_realised=1.22 if layers else 0.0, moves=96, bytes=4_224_000_000,
        epochs_settled=4, epochs_aborted=0, policy_s=0.08, layers=layers,
    )  # fmt: skip


def score() -> ShadowScored:
    return ShadowScored(
        group="default", policy="flashlb", outcome="applied", reason="", steps=128, par_before=1.52,
        par_predicted=1.15, par_mean=1.18, par_p95=1.3, par_p99=1.4, active_par_mean=1.29,
        active_par_p95=1.4, active_par_p99=1.5, moves=31, active_moves=24, plan_s=0.9,
    )  # fmt: skip


def events(layers: int = 58) -> list[Told]:
    """Events before the snapshot, oldest first."""
    hotter = tuple(1.0 + 0.3 * (layer % 4) for layer in range(layers))
    unreachable = epoch(39, "aborted", "rank 2: unreachable: \x1b[31mgone")
    lines = [epoch(38), unreachable, epoch(40), epoch(41)]
    refused = cycle("refused", "gain 0.0012 is under min_gain 0.01")
    gathered: dict[str, object] = {"term": 3, "ranks": 16}
    lost: dict[str, object] = {"rank": 2, "reason": "silent"}
    return [
        *(Epoch(at_s=AT_S - 60 + index, line=line) for index, line in enumerate(lines)),
        Cycle(at_s=AT_S - 50, line=cycle("applied", layers=hotter)),
        Shadow(at_s=AT_S - 40, line=score()),
        Cycle(at_s=AT_S - 30, line=refused),
        Noted(at_s=AT_S - 20, level="info", event="group gathered", fields=gathered),
        Noted(at_s=AT_S - 10, level="warning", event="rank lost", fields=lost),
    ]


def history(*, layers: int = 58, ranks: int = 16, groups: int = 1) -> History:
    """A watcher that has heard all of it."""
    made = History()
    made.take(events(layers))
    names = ["default", *(f"group-{index}" for index in range(1, groups))]
    shown = [group(name, layers=layers, ranks=ranks) for name in names]
    made.take(snapshot(*shown, at_s=AT_S + later) for later in (0, 10, 20))
    return made
