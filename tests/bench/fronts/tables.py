"""Tables and lines of a run, as Markdown.

Owns their layout. Must not decide anything: verdicts and claims come ready.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from tests.bench.fronts.claims import DEFAULT, Case, Claim
from tests.bench.fronts.claims import claims as made_by
from tests.bench.fronts.rows import Row
from tests.bench.fronts.small import Answer
from tests.bench.fronts.verdict import LEVEL, Duel, Judged, Verdict, duel, judge

HEAD = (
    "| peer | PAR | moves | gap % | CPU ms | wall ms | ours, no more moves | "
    f"ours, PAR <= x{LEVEL} | verdict | as shipped |\n|---|" + "--:|" * 5 + "---|" * 4
)
OURS = "| ours | PAR | moves | gap % | CPU ms | wall ms |\n|---|" + "--:|" * 5


def of_case(case: Case) -> str:
    """One load: every peer beside ours, then our points."""
    lines = [f"\n### {case.load}\n", HEAD]
    shipped = next((row for row in case.ours if row.policy == DEFAULT and not row.error), None)
    good = sorted((row for row in case.peers if not row.error), key=lambda row: row.par)
    for peer in good:
        judged, alone = judge(peer, case.ours), duel(peer, shipped) if shipped else ""
        cells = [_figures(peer), _near(judged.best), _near(judged.fewest)]
        lines.append(f"| {' | '.join([*cells, judged.verdict, alone])} |")
    lines += ["", OURS, *(f"| {_figures(row)} |" for row in case.ours if not row.error)]
    silent = [row for row in [*case.peers, *case.ours] if row.error]
    lines += ["", *(f"- {row.policy}: {row.error}" for row in silent)]
    return "\n".join(lines)


def of_counts(cases: Sequence[Case]) -> str:
    """How often each verdict was given, per load and in all, with every miss named."""
    lines = ["\n### Verdicts: peers' points against the front of ours\n"]
    lines += ["| load | " + " | ".join(Verdict) + " |", "|---|" + "--:|" * len(Verdict)]
    total, misses = Counter[str](), []
    for case in cases:
        judged = [judge(peer, case.ours) for peer in case.peers if not peer.error]
        counts = Counter[str](one.verdict for one in judged)
        lines.append(f"| {case.load} | {_counts(counts, Verdict)} |")
        total += counts
        misses += [_miss(case, one) for one in judged if one.verdict is Verdict.MISSED]
    return "\n".join([*lines, f"| **all** | {_counts(total, Verdict)} |", "", *misses])


def of_settings(cases: Sequence[Case]) -> str:
    """Each of our points alone against every point of every peer, over all loads."""
    lines = [
        "\n### One setting for all loads\n",
        "| ours | " + " | ".join(Duel) + " | PAR | moves | claims |",
    ]
    lines += ["|---|" + "--:|" * (len(Duel) + 3)]
    for name in dict.fromkeys(row.policy for case in cases for row in case.ours):
        pairs = [(case, row) for case in cases for row in case.ours if row.policy == name]
        good = [(case, row) for case, row in pairs if not row.error]
        counts = Counter[str](
            duel(peer, row) for case, row in good for peer in case.peers if not peer.error
        )
        par, moves = (
            fmean(values) for values in zip(*((row.par, row.moves) for _, row in good), strict=True)
        )
        made = list(made_by([replace(case, ours=[row]) for case, row in good]))
        held = f"{sum(claim.holds for claim in made)} of {len(made)}"
        lines.append(f"| {name} | {_counts(counts, Duel)} | {par:.3f} | {moves:.1f} | {held} |")
    return "\n".join(lines)


def of_claims(title: str, claims: Iterable[Claim]) -> str:
    """One line per claim."""
    lines = [f"\n### {title}\n"]
    lines += [f"- {'holds' if one.holds else 'MISSED'}: {one.text}: {one.found}" for one in claims]
    return "\n".join(lines)


def of_answers(answers: Sequence[Answer]) -> str:
    """Small problems: percent above the optimum."""
    names = list(dict.fromkeys(one.policy for one in answers))
    lines = ["\n### Small problems: percent above the optimum\n"]
    lines += ["| problem | optimum | " + " | ".join(names) + " |"]
    lines += ["|---|--:|" + "--:|" * len(names)]
    for problem in dict.fromkeys(one.problem for one in answers):
        cells = [
            one.error or f"{one.excess * 100:.2f}" for one in answers if one.problem == problem
        ]
        lines.append(f"| {problem.name} | {problem.least:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(row: Row) -> str:
    cpu = f"{row.cpu_ms:.1f}" if row.cpu_ms else ""
    cells = [row.policy, f"{row.par:.3f}", f"{row.moves:.1f}", f"{row.gap:.2f}", cpu]
    return " | ".join([*cells, f"{row.wall_ms:.1f}"])


def _near(row: Row | None) -> str:
    return "none" if row is None else f"{row.par:.3f} / {row.moves:.1f} ({row.policy})"


def _counts(counts: Mapping[str, int], kinds: Iterable[str]) -> str:
    return " | ".join(str(counts.get(kind, 0)) for kind in kinds)


def _miss(case: Case, one: Judged) -> str:
    peer = f"{one.peer.policy} {one.peer.par:.3f} / {one.peer.moves:.1f}"
    return f"- missed on {case.load}: {peer}; ours {_near(one.best)} or {_near(one.fewest)}"
