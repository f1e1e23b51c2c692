"""Enable, tune or leave off: what the evidence means for somebody with a forward time.

Owns the conclusion and its words. Must not measure anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from eplbd.offline.evidence import Evidence, Redundancy
from eplbd.offline.forecast import Forecast
from eplbd.offline.measure import Gain
from eplbd.offline.terms import Terms

Word = Literal["enable", "tune", "leave off"]

_KEPT = 0.9
"""A plan has aged when less than this part of its first gain is left."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """The conclusion. slots, interval_windows, mode: recommended. reasons: most important first.

    break_even_steps: forwards that a later plan must last to pay its moves if nothing of them is
    hidden; infinite where nothing is gained. lifetime_steps: forwards that it is taken to last.
    """

    word: Word
    reasons: tuple[str, ...]
    saved_ms: float
    static_saved_ms: float
    break_even_steps: float
    first_break_even_steps: float
    lifetime_steps: float
    slots: int
    interval_windows: int
    mode: Literal["dynamic", "static", "hold"]
    phase: str | None


def judge(evidence: Evidence, terms: Terms) -> Verdict:
    """Conclude."""
    saved = terms.saved_ms(evidence.on.mean)
    steps = _steps_per_window(evidence, terms)
    cost_ms = (evidence.later or evidence.first).seconds * 1e3
    break_even = cost_ms / saved if saved > 0 else math.inf
    lifetime = steps if steps is not None else terms.horizon_s * 1e3 / terms.step_ms
    best = _best_slots(evidence, terms)
    word, reasons = _conclude(evidence, terms, break_even, lifetime, best)
    static = terms.saved_ms(evidence.static.mean)
    mode: Literal["dynamic", "static", "hold"] = "hold"
    if word != "leave off":
        stable = 0 < _KEPT * max(evidence.on.mean, 0) <= evidence.static.mean
        mode = "static" if stable else "dynamic"
    return Verdict(
        word=word,
        reasons=(*reasons, *_asides(evidence, mode, best)),
        saved_ms=saved,
        static_saved_ms=static,
        break_even_steps=break_even,
        first_break_even_steps=evidence.first.seconds * 1e3 / saved if saved > 0 else math.inf,
        lifetime_steps=lifetime,
        slots=best.slots,
        interval_windows=_interval(evidence),
        mode=mode,
        phase=_phase(evidence),
    )


def _conclude(
    evidence: Evidence, terms: Terms, break_even: float, lifetime: float, best: Redundancy
) -> tuple[Word, list[str]]:
    on, name = evidence.on, evidence.task.guests[0].name
    saved = terms.saved_ms(on.mean)
    asked = evidence.task.topology.slots_per_rank
    said = (
        f"{name} takes PAR from {evidence.off_par:.3f} to {on.par:.3f} on windows it has not seen: "
        f"{saved:+.2f} ms saved of a {terms.step_ms:g} ms forward, if {terms.moe_share:.0%} of it "
        "waits for the hottest rank"
    )
    worth = terms.min_gain * terms.step_ms
    if _pays(on, terms, 2.0):
        if break_even > lifetime:
            costs = (
                f"its moves cost {break_even:,.0f} forwards of that gain and a plan is taken to "
                f"last {lifetime:,.0f}: plan less often, cap --max-moves, or use a policy that "
                "moves less"
            )
            return "tune", [said, costs]
        better = terms.saved_ms(best.gain.mean) - saved
        if best.slots > asked and better > worth:
            return "tune", [said, f"{best.slots} slots per rank would save {better:.2f} ms more"]
        return "enable", [said]
    if on.mean <= 0 or not on.beyond_chance():
        spread = f"{on.mean:+.2%} ± {on.error:.2%}" if len(on.shares) > 1 else f"{on.mean:+.2%}"
        said += f"; over windows the gain is {spread} (standard error): none that can be told"
    else:
        said += f"; less than the {worth:.2f} ms that are worth it (--min-gain)"
    for gain, how in (
        (evidence.static, "one static map, planned once and left alone"),
        (best.gain, f"{best.slots} slots per rank"),
    ):
        if _pays(gain, terms, 3.0):
            return "tune", [said, f"{how} would save {terms.saved_ms(gain.mean):.2f} ms"]
    return "leave off", [said]


def _pays(gain: Gain, terms: Terms, errors: float) -> bool:
    return (
        gain.beyond_chance(errors) and terms.saved_ms(gain.mean) >= terms.min_gain * terms.step_ms
    )


def _asides(evidence: Evidence, mode: str, best: Redundancy) -> list[str]:
    """Whatever else somebody should know."""
    said = [_steadiness(evidence.forecast)]
    possible = evidence.oracle.mean
    if possible > 0 and mode != "hold":
        said.append(
            f"planned on the judged window itself the gain would be {possible:.1%}, "
            f"on the one before it is {evidence.on.mean:.1%}"
        )
    if mode == "static":
        kept = min(1.0, evidence.static.mean / max(evidence.on.mean, evidence.static.mean))
        said.append(
            f"a placement planned once and left alone keeps {kept:.0%} of the gain: mode `static` "
            "would do, or dynamic with few moves"
        )
    asked = evidence.task.topology.slots_per_rank
    if mode != "hold" and best.slots != asked:
        how = "are enough" if best.slots < asked else "would do better"
        said.append(
            f"{best.slots} slots per rank {how}: PAR {best.gain.par:.3f}, "
            f"{best.rank_bytes / 1e9:.1f} GB of copies per rank"
        )
    if evidence.phases_alike is not None and evidence.phases_alike < 0.8:
        said.append(
            f"prefill and decode heat different experts (correlation {evidence.phases_alike:.2f}): "
            "choose one with [balance] phase"
        )
    if not evidence.task.recorded.are_steps:
        said.append(
            "a row of this trace sums many forwards; single forwards are less even, and more of "
            "their skew is noise"
        )
    if len(evidence.on.shares) < 4:
        said.append(f"only {len(evidence.on.shares)} windows were judged: take it as a hint")
    said += [f"{evidence.task.guests[0].name} failed: {one}" for one in evidence.failures[:2]]
    return said


def _steadiness(seen: Forecast) -> str:
    if seen.is_noise:
        return (
            f"a window says nothing about the next (correlation {seen.correlation:.2f}): the skew "
            "is sampling noise, which no placement can follow"
        )
    steady = seen.change < 1.5 * seen.noise
    return (
        f"the heat {'is steady' if steady else 'moves'}: {seen.change:.1%} of the load is "
        f"elsewhere one window later, sampling alone would make {seen.noise:.1%}"
    )


def _steps_per_window(evidence: Evidence, terms: Terms) -> float | None:
    rows = evidence.task.rows_per_window
    if terms.row_steps is not None:
        return rows * terms.row_steps
    return float(rows) if evidence.task.recorded.are_steps else None


def _best_slots(evidence: Evidence, terms: Terms) -> Redundancy:
    """The fewest slots that save as much as any, but for what is not worth bothering about."""
    most = max(one.gain.mean for one in evidence.redundancy)
    enough = terms.saved_ms(most) - terms.min_gain * terms.step_ms
    return next(one for one in evidence.redundancy if terms.saved_ms(one.gain.mean) >= enough)


def _interval(evidence: Evidence) -> int:
    """The age in windows up to which a plan keeps most of its first gain."""
    first = evidence.ageing[0]
    kept = 1
    for age, gain in enumerate(evidence.ageing, 1):
        if first <= 0 or gain < _KEPT * first:
            break
        kept = age
    return kept


def _phase(evidence: Evidence) -> str | None:
    """Which phase should drive planning; None where the trace does not tell or they agree."""
    if evidence.phases_alike is None or evidence.phases_alike >= 0.8:
        return None
    recorded = evidence.task.recorded
    tokens = {
        name: int(recorded.rows[recorded.phases == bit].sum(dtype="int64"))
        for name, bit in (("prefill", 1), ("decode", 2))
    }
    return max(tokens, key=tokens.__getitem__)
