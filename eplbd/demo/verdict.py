"""From what was measured to figures, and from figures to a verdict. Pure.

Owns what each figure means and what a run has to show. It must not know processes, files or
terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec
import numpy as np

from eplbd.demo.record import Floats, Journal, Record, Step

HOLD = "hold"

WARM_UP_STEPS = 8
"""First steps are left out of times: caches and peers are cold."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as `--json` prints it; null where there was nothing to measure.

    par_before, par_after: hottest rank over the mean rank, averaged over the steps of the second
    half of the run and over layers. Both are of the same steps and tokens: `after` as the live
    model ran them, `before` as its twin did, whose experts are where they all began. `_by_layer`
    are the same, one for each layer.

    outputs_identical: whether in every step, on every rank, live and twin returned the same bits.
    differing_steps: how many did not; first_difference, last_difference: their numbers, from 0.

    forward_ms_p50: of live forwards with the hook while nothing was staged. _without_hook: the
    twin's in the same steps; the two take turns at being first. _staging: of live forwards while
    weights were on their way; twin_ms_p50_staging: the twin's in those steps. All ranks' forwards,
    milliseconds. forward_ratio_p50: live over twin, step by step, the slowest rank of each: what a
    busy machine does to both cancels out. With the policy hold it is the hook's cost alone; else
    the two also differ in placement, which makes nothing faster where ranks share the cores.
    Rounds begin where a live forward ends, so the twin's forwards bear the most of staging.

    hook_us_p50, hook_us_p99: both calls of the hook, where nothing is staged and nothing flips.
    commit_us_p50: where a flip copies weights and writes maps. stall_us_max: longest wait of a
    forward for a decision. Microseconds.

    epochs_cut: given up because the run was over. cycles: rebalances by outcome.
    """

    ok: bool = False
    verdict: list[str] = []
    par_before: float | None
    par_after: float | None
    par_before_by_layer: list[float]
    par_after_by_layer: list[float]
    outputs_identical: bool
    differing_steps: int
    first_difference: int | None
    last_difference: int | None
    epochs_settled: int
    epochs_aborted: int
    epochs_cut: int
    abort_reasons: dict[str, int]
    cycles: dict[str, int]
    last_refusal: str
    moves: int
    bytes_moved: int
    forward_ms_p50: float | None
    forward_ms_p50_without_hook: float | None
    forward_ratio_p50: float | None
    forward_ms_p50_staging: float | None
    twin_ms_p50_staging: float | None
    hook_us_p50: float | None
    hook_us_p99: float | None
    commit_us_p50: float | None
    stall_us_max: float
    steps: int
    steps_compared: int
    staging_steps: int
    steps_per_s: float
    seconds: float
    setup_s: float
    dispatch: str
    policy: str
    ranks: int
    layers: int
    experts: int
    seed: int
    trace: str | None
    topics: list[str]
    broken: list[str]
    frozen: str
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the figures need beside the record. faults: what went wrong around the steps."""

    dispatch: str
    policy: str
    layers: int
    experts: int
    seed: int
    trace: str | None
    seconds: float
    setup_s: float
    faults: tuple[str, ...] = ()


def figures_of(
    record: Record, journal: Journal, around: Circumstances, limit: int | None
) -> Figures:
    """Work the figures out.

    limit: steps that are judged, the first ones; None judges all. Outputs count in all steps.
    """
    steps = record.steps[:limit]
    sections = (
        _loads(steps[len(steps) // 2 :]),
        _outputs(record),
        _epochs(journal),
        _times(steps[WARM_UP_STEPS:]),
        asdict(around),
        {
            "steps": len(steps),
            "staging_steps": sum(bool(step.staging.any()) for step in steps),
            "steps_per_s": round(len(record.steps) / max(around.seconds, 1e-3), 2),
            "ranks": record.ranks,
            "topics": list(dict.fromkeys(step.topic for step in steps)),
        },
    )
    return msgspec.convert({k: v for section in sections for k, v in section.items()}, Figures)


def _loads(final: Sequence[Step]) -> dict[str, object]:
    before, after = (_by_layer(final, name) for name in ("twin_par", "live_par"))
    return {
        "par_before": _mean(before),
        "par_after": _mean(after),
        "par_before_by_layer": before,
        "par_after_by_layer": after,
    }


def _outputs(record: Record) -> dict[str, object]:
    differing = [i for i, step in enumerate(record.steps) if not step.identical.all()]
    return {
        "outputs_identical": bool(record.steps) and not differing,
        "differing_steps": len(differing),
        "first_difference": differing[0] if differing else None,
        "last_difference": differing[-1] if differing else None,
        "steps_compared": len(record.steps),
        "broken": [
            f"rank {b.rank}, layer {b.layer}, expert {b.expert} before step {b.step}"
            for b in record.broke
        ],
    }


def _epochs(journal: Journal) -> dict[str, object]:
    return {
        "epochs_settled": journal.settled,
        "epochs_aborted": journal.aborted,
        "epochs_cut": journal.cut,
        "abort_reasons": dict(journal.abort_reasons),
        "cycles": dict(journal.cycles),
        "last_refusal": journal.refusal,
        "moves": journal.moves,
        "bytes_moved": journal.bytes,
        "stall_us_max": round(journal.stall_s * 1e6, 1),
        "frozen": journal.frozen,
    }


def _times(warm: Sequence[Step]) -> dict[str, object]:
    calm = _chosen(warm, staging=False, committed=False)
    quiet, busy = _chosen(warm, staging=False), _chosen(warm, staging=True)
    commits = _chosen(warm, committed=True)
    return {
        "forward_ms_p50": _percentile(quiet, "live_s", 50, 1e3),
        "forward_ms_p50_without_hook": _percentile(quiet, "twin_s", 50, 1e3),
        "forward_ratio_p50": _ratio(quiet),
        "forward_ms_p50_staging": _percentile(busy, "live_s", 50, 1e3),
        "twin_ms_p50_staging": _percentile(busy, "twin_s", 50, 1e3),
        "hook_us_p50": _percentile(calm, "hook_s", 50, 1e6),
        "hook_us_p99": _percentile(calm, "hook_s", 99, 1e6),
        "commit_us_p50": _percentile(commits, "hook_s", 50, 1e6),
    }


def judge(figures: Figures) -> Figures:
    """The same with its verdict."""
    wrong = shortcomings(figures)
    if wrong:
        heads = [f"FAILED: {wrong[0]}", *(f"and {more}" for more in wrong[1:])]
    elif figures.policy == HOLD:
        heads = ["OK: measured; the policy hold moves nothing"]
    else:
        heads = ["OK: balanced while serving"]
    verdict = [*heads, *_sentences(figures)]
    return msgspec.structs.replace(figures, ok=not wrong, verdict=verdict)


def shortcomings(figures: Figures) -> list[str]:
    """What the run failed to show, the worst first; empty where it showed all."""
    wrong = list(figures.faults)
    if not figures.steps:
        wrong.append("no step was taken")
        return wrong
    if not figures.outputs_identical:
        wrong.append(
            f"outputs differ from the twin's in {figures.differing_steps} of "
            f"{figures.steps_compared} steps, {figures.first_difference} to "
            f"{figures.last_difference}"
        )
    elif figures.broken:
        wrong.append("a map was broken and no output differed: the comparison proves nothing")
    if figures.frozen:
        wrong.append("the daemon froze the placement")
    if figures.policy == HOLD:
        return wrong
    if not figures.epochs_settled:
        why = f"; the last rebalance: {figures.last_refusal}" if figures.last_refusal else ""
        wrong.append(f"no epoch settled{why}")
    before, after = figures.par_before, figures.par_after
    if before is None or after is None or after >= before:
        wrong.append("the hottest rank is no cooler than without moves")
    return wrong


def _sentences(figures: Figures) -> list[str]:
    f = figures
    said: list[str] = []
    if not f.steps:
        return said
    if f.par_before is not None and f.par_after is not None:
        said.append(
            f"PAR {f.par_before:.2f} without moves, {f.par_after:.2f} with: the same "
            f"{f.steps - f.steps // 2} last steps on both placements"
        )
    if f.outputs_identical:
        said.append(f"outputs the same bits in {f.steps_compared} steps on {f.ranks} ranks")
    said += [f"map broken on purpose: {entry}" for entry in f.broken]
    if f.broken and not f.frozen:
        said.append(_why_unnoticed(f.dispatch))
    if f.frozen:
        said.append(f"the daemon's audit froze the placement: {f.frozen}")
    aborts = ", ".join(f"{n} x {reason}" for reason, n in f.abort_reasons.items())
    said.append(
        f"{f.epochs_settled} epochs settled, {f.epochs_aborted} aborted"
        f"{f' ({aborts})' if aborts else ''}; {f.moves} moves, {f.bytes_moved / 2**20:.1f} MiB"
    )
    live, twin, busy = f.forward_ms_p50, f.forward_ms_p50_without_hook, f.forward_ms_p50_staging
    if live and twin and f.forward_ratio_p50:
        said.append(
            f"forward {live:.1f} ms, {twin:.1f} without the hook (ratio {f.forward_ratio_p50:.3f})"
            + (f", {busy:.1f} while staging" if busy else "")
        )
    if f.hook_us_p50 is not None and f.hook_us_p99 is not None:
        commit = f", {f.commit_us_p50:.0f} us where it commits" if f.commit_us_p50 else ""
        said.append(f"hook {f.hook_us_p50:.0f} us, p99 {f.hook_us_p99:.0f} us{commit}")
    return said


def _why_unnoticed(dispatch: str) -> str:
    if dispatch == "all-to-all":
        return (
            "the daemon cannot see it: under all-to-all a wrong slot still receives what was sent"
        )
    return "the daemon's audit has not seen it: no step was audited since"


def _by_layer(steps: Sequence[Step], name: str) -> list[float]:
    if not steps:
        return []
    mean: Floats = np.mean([getattr(step, name) for step in steps], axis=0)
    return [round(float(value), 4) for value in mean]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _chosen(
    steps: Sequence[Step], *, staging: bool | None = None, committed: bool | None = None
) -> list[Step]:
    """Steps in which some rank was staging, or committed; or none was."""
    return [
        step
        for step in steps
        if staging in (None, bool(step.staging.any()))
        and committed in (None, bool(step.committed.any()))
    ]


def _ratio(steps: Sequence[Step]) -> float | None:
    if not steps:
        return None
    return round(float(np.median([step.live_s.max() / step.twin_s.max() for step in steps])), 4)


def _percentile(steps: Sequence[Step], name: str, percent: float, scale: float) -> float | None:
    if not steps:
        return None
    samples: Floats = np.concatenate([getattr(step, name) for step in steps])
    return round(float(np.percentile(samples, percent)) * scale, 3)
