"""`eplbd diagnose`: should a balancer be on, and how. Text and JSON of a verdict."""

from __future__ import annotations

import math

import click

from eplbd.errors import ConfigError
from eplbd.offline.evidence import Evidence, effort, gather
from eplbd.offline.forecast import Forecast
from eplbd.offline.progress import progress
from eplbd.offline.settings import Options, prepare
from eplbd.offline.simulation import described
from eplbd.offline.table import aligned, emit_json
from eplbd.offline.terms import Terms
from eplbd.offline.verdict import Verdict, judge


def run(options: Options, terms: Terms) -> tuple[Evidence, Verdict]:
    """Measure and judge. Raises ConfigError and PolicyError."""
    task = prepare(options)
    if len(task.guests) != 1:
        raise ConfigError(f"--policy {options.policy}: a diagnosis is made with one policy")
    with progress("measuring", effort(task)) as done:
        evidence = gather(task, done)
    return evidence, judge(evidence, terms)


def command(options: Options, terms: Terms, json: str | None) -> None:
    """Run, and print the verdict or the JSON."""
    evidence, verdict = run(options, terms)
    if json is not None:
        emit_json(json, document(evidence, verdict, terms))
    if json != "-":
        click.echo(text(evidence, verdict, terms))


def document(evidence: Evidence, verdict: Verdict, terms: Terms) -> dict[str, object]:
    """What `--json` gives; units are in the names, null is infinite or unknown."""
    return {
        "verdict": verdict.word,
        "reasons": [*verdict.reasons],
        "policy": evidence.task.guests[0].name,
        "step_ms": terms.step_ms,
        "moe_share": terms.moe_share,
        "saved_ms": round(verdict.saved_ms, 4),
        "static_saved_ms": round(verdict.static_saved_ms, 4),
        "par": {
            "off": round(evidence.off_par, 4),
            "on": round(evidence.on.par, 4),
            "static": round(evidence.static.par, 4),
            "oracle": round(evidence.oracle.par, 4),
        },
        "gain": round(evidence.on.mean, 5),
        "gain_standard_error": _finite(evidence.on.error),
        "judged_windows": len(evidence.on.shares),
        "moves_per_layer": [round(moves, 2) for moves in evidence.moves_per_layer],
        "first_stall_ms": round(evidence.first.seconds * 1e3, 3),
        "later_stall_ms": round(evidence.later.seconds * 1e3, 3) if evidence.later else None,
        "break_even_steps": _finite(verdict.break_even_steps),
        "first_break_even_steps": _finite(verdict.first_break_even_steps),
        "lifetime_steps": _finite(verdict.lifetime_steps),
        "forecast": _forecast(evidence.forecast),
        "gain_by_age_in_windows": [round(gain, 5) for gain in evidence.ageing],
        "redundancy": [
            {
                "slots": one.slots,
                "par": round(one.gain.par, 4),
                "gain": round(one.gain.mean, 5),
                "rank_bytes": one.rank_bytes,
            }
            for one in evidence.redundancy
        ],
        "phases_correlation": evidence.phases_alike,
        "recommended": {
            "mode": verdict.mode,
            "slots": verdict.slots,
            "interval_windows": verdict.interval_windows,
            "phase": verdict.phase,
        },
    }


def _forecast(seen: Forecast) -> dict[str, float | None]:
    return {
        "correlation": _finite(seen.correlation),
        "correlation_if_only_sampling_differed": _finite(seen.ceiling),
        "change": _finite(seen.change),
        "change_by_sampling": _finite(seen.noise),
    }


def text(evidence: Evidence, verdict: Verdict, terms: Terms) -> str:
    """What `eplbd diagnose` prints: the verdict first."""
    lines = [f"{verdict.word.upper()}: {verdict.saved_ms:+.2f} ms per forward", ""]
    lines += [f"- {reason}" for reason in verdict.reasons]
    lines += ["", described(evidence.task), ""]
    lines.append(_placements(evidence, terms))
    lines += ["", _redundancy(evidence, verdict, terms), "", _costs(evidence, verdict)]
    return "\n".join(lines)


def _placements(evidence: Evidence, terms: Terms) -> str:
    rows = [["no balancer", f"{evidence.off_par:.3f}", "", ""]]
    for name, gain in (
        ("planned on the window before", evidence.on),
        ("planned once, on the first", evidence.static),
        ("planned on the window itself", evidence.oracle),
    ):
        error = f"± {gain.error:.2%}" if math.isfinite(gain.error) else ""
        rows.append([name, f"{gain.par:.3f}", f"{gain.mean:+.2%} {error}".strip()])
        rows[-1].append(f"{terms.saved_ms(gain.mean):+.2f}")
    return aligned(("placement", "PAR", "gain", "ms saved"), rows)


def _redundancy(evidence: Evidence, verdict: Verdict, terms: Terms) -> str:
    rows = [
        [
            f"{one.slots}{' (recommended)' if one.slots == verdict.slots else ''}",
            f"{one.gain.par:.3f}",
            f"{terms.saved_ms(one.gain.mean):+.2f}",
            f"{one.rank_bytes / 1e9:.1f}",
        ]
        for one in evidence.redundancy
    ]
    return aligned(("slots per rank", "PAR", "ms saved", "GB of copies per rank"), rows)


def _costs(evidence: Evidence, verdict: Verdict) -> str:
    ages = ", ".join(f"{gain:.1%}" for gain in evidence.ageing)
    first, later = evidence.first, evidence.later
    begun = (
        f"first plan: {evidence.moves_per_layer[0]:.1f} moves per layer, "
        f"{first.seconds * 1e3:.0f} ms if nothing is hidden, "
        f"{_paid(verdict.first_break_even_steps)}"
    )
    lines = [begun]
    if later is not None:
        lines.append(
            f"later plans: {evidence.moves_per_layer[-1]:.1f} moves per layer, "
            f"{later.seconds * 1e3:.0f} ms, {_paid(verdict.break_even_steps)}; "
            f"a plan is taken to last {verdict.lifetime_steps:,.0f}"
        )
    lines.append(
        f"gain of a plan that is 1, 2, ... windows old: {ages}; "
        f"plan again after {verdict.interval_windows}"
    )
    return "\n".join(lines)


def _paid(steps: float) -> str:
    return f"paid back after {steps:,.0f} forwards" if math.isfinite(steps) else "never paid back"


def _finite(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
