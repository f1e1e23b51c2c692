"""Tables and lines of a run, as Markdown.

Owns their layout. Must not decide anything: verdicts and claims come ready.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from tests.bench.fronts.claims import DEFAULT, Case, Claim
from tests.bench.fronts.rows import Row
from tests.bench.fronts.small import Answer
from tests.bench.fronts.verdict import LEVEL, Judged, Verdict, judge

HEAD = (
    "| peer | PAR | moves | gap % | CPU ms | wall ms | ours, no more moves | "
    f"ours, PAR <= x{LEVEL} | verdict | as shipped |\n|---|" + "--:|" * 5 + "---|" * 4
)
OURS = "| ours | PAR | moves | gap % | CPU ms | wall ms |\n|---|" + "--:|" * 5


def of_case(case: Case) -> str:
    """One load: every peer beside ours, then our points."""
    lines = [f"\n### {case.load}\n", HEAD]
    shipped = [row for row in case.ours if row.policy == DEFAULT]
    good = sorted((row for row in case.peers if not row.error), key=lambda row: row.par)
    for peer in good:
        judged, alone = judge(peer, case.ours), judge(peer, shipped)
        cells = [_figures(peer), _near(judged.best), _near(judged.fewest)]
        lines.append(f"| {' | '.join([*cells, judged.verdict, alone.verdict])} |")
    lines += ["", OURS, *(f"| {_figures(row)} |" for row in case.ours if not row.error)]
    silent = [row for row in [*case.peers, *case.ours] if row.error]
    lines += ["", *(f"- {row.policy}: {row.error}" for row in silent)]
    return "\n".join(lines)


def of_counts(cases: Sequence[Case]) -> str:
    """How often each verdict was given, per load and in all, with every miss named."""
    lines = ["\n### Verdicts, load by load: any of our points (as shipped)\n"]
    lines += ["| load | " + " | ".join(Verdict) + " |", "|---|" + "--:|" * len(Verdict)]
    total, shipped_total, misses = Counter[Verdict](), Counter[Verdict](), []
    for case in cases:
        judged, alone = _judged(case, case.ours), _judged(case, case.ours[:1])
        counts, shipped = (Counter(one.verdict for one in some) for some in (judged, alone))
        lines.append(f"| {case.load} | {_counts(counts, shipped)} |")
        total, shipped_total = total + counts, shipped_total + shipped
        misses += [_miss(case, one) for one in judged if one.verdict is Verdict.MISSED]
    lines += [f"| **all** | {_counts(total, shipped_total)} |", "", *misses]
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


def _judged(case: Case, ours: Sequence[Row]) -> list[Judged]:
    return [judge(peer, ours) for peer in case.peers if not peer.error]


def _counts(counts: Counter[Verdict], shipped: Counter[Verdict]) -> str:
    return " | ".join(f"{counts[verdict]} ({shipped[verdict]})" for verdict in Verdict)


def _miss(case: Case, one: Judged) -> str:
    peer = f"{one.peer.policy} {one.peer.par:.3f} / {one.peer.moves:.1f}"
    return f"- missed on {case.load}: {peer}; ours {_near(one.best)} or {_near(one.fewest)}"
