"""What the project says of its policies, held against the rows of a run.

Owns the figures to reach. Must not know how a row was measured.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.fronts.cost import Cost
from tests.bench.fronts.ours import EXACT, Point
from tests.bench.fronts.rows import Row
from tests.bench.fronts.small import WEIGHTED, Answer
from tests.bench.fronts.verdict import best

DEFAULT = "incremental"
VLLM = "vllm"
FLASHLB = "ascend-flashlb-cold"
"""FlashLB as it plans a window anew; with its memory it plans once and stays."""
PARTS = ((5, 1.01), (10, 1.03))
"""At this part of vLLM's moves, within this factor of the best peer's PAR."""
ANTI = (5, 1.02)
DRIFT = 1.15
FEW_SLOTS = {"dsv3-ep128": 1.0, "dsv3-ep256": 6.0}
"""Shapes of three and of two slots per rank, and percent above the bound."""
PLAN_MS = 100.0
TOY = "toy"
NEAR = 0.001
"""A fit of shares stops there."""


@dataclass(frozen=True, slots=True)
class Case:
    """One load with everybody's rows."""

    load: str
    recorded: bool
    peers: Sequence[Row]
    ours: Sequence[Row]

    @property
    def episode(self) -> str:
        """`steady`, `drift`, ... of a synthetic load."""
        return "" if self.recorded else self.load.rpartition(" ")[2]


@dataclass(frozen=True, slots=True)
class Claim:
    """One line: what is asked, what was found, whether it holds."""

    text: str
    found: str
    holds: bool


def claims(cases: Sequence[Case]) -> Iterator[Claim]:
    """All that can be said from rows; a claim whose peer has no row is left out."""
    for divisor, factor in PARTS:
        for case in cases:
            if case.recorded:
                yield from _few_moves(case, VLLM, divisor, factor)
    for case in cases:
        shipped = _row(case.ours, DEFAULT)
        if case.episode == "anti":
            yield from _few_moves(case, FLASHLB, *ANTI)
        if case.episode == "drift" and shipped is not None:
            found = f"{shipped.par:.3f} with {shipped.moves:.1f} moves"
            yield Claim(f"{case.load}: default below {DRIFT}", found, shipped.par < DRIFT)
        if case.episode == "steady" and shipped is not None:
            found = f"{shipped.moves:.2f} moves per layer, PAR {shipped.par:.3f}"
            yield Claim(f"{case.load}: default moves nothing", found, shipped.moves == 0)
        yield from _to_the_bound(case)


def _to_the_bound(case: Case) -> Iterator[Claim]:
    """Two or three slots per rank, where replica counts and places have to be found together."""
    nearest = _row(case.ours, Point(DEFAULT, EXACT).name)
    percent = FEW_SLOTS.get(case.load.partition(" ")[0])
    if nearest is not None and percent is not None:
        text = f"{case.load}: the window's own bound within {percent:g}%"
        yield Claim(text, f"+{nearest.gap:.2f}%", nearest.gap <= percent)


def _few_moves(case: Case, measure: str, divisor: int, factor: float) -> Iterator[Claim]:
    """Ours at a part of a peer's moves, against the best PAR that any peer (or FlashLB) reaches."""
    peer = _row(case.peers, measure)
    if peer is None:
        return
    rivals = [peer] if measure == FLASHLB else [row for row in case.peers if not row.error]
    rival = min(rivals, key=lambda row: row.par)
    mine = best(case.ours, peer.moves / divisor)
    text = (
        f"{case.load}: within {factor - 1:.0%} of {rival.policy} ({rival.par:.3f}) "
        f"at 1/{divisor} of {measure}'s {peer.moves:.1f} moves"
    )
    if mine is None:
        yield Claim(text, "no point of ours moves that little", holds=False)
        return
    found = f"{mine.par / rival.par - 1:+.1%} with {mine.moves:.1f} ({mine.policy})"
    yield Claim(text, found, mine.par <= rival.par * factor)


def exact(answers: Sequence[Answer], rivals: Collection[str]) -> Iterator[Claim]:
    """Small problems, with the default options: the optimum of the toy, elsewhere the best peer."""
    for mine in answers:
        if mine.policy != DEFAULT:
            continue
        least, found = mine.problem.least, f"{mine.hottest:.2f}, {mine.excess:+.2%}"
        if mine.problem.name == TOY:
            holds = mine.hottest <= least * (1 + 1e-6)
            yield Claim(f"{TOY}: the optimum, {least:.2f}", found, holds)
        if mine.problem.name == WEIGHTED:
            holds = mine.excess <= NEAR
            yield Claim(f"{WEIGHTED}: the mean, {least:.2f}, within {NEAR:.1%}", found, holds)
        others = [
            one
            for one in answers
            if one.problem == mine.problem and one.policy in rivals and not one.error
        ]
        if others:
            peer = min(others, key=lambda one: one.hottest)
            text = (
                f"{mine.problem.name}: as near to {least:.2f} as {peer.policy} ({peer.excess:+.2%})"
            )
            yield Claim(text, found, mine.hottest <= peer.hottest * (1 + 1e-6))


def price(costs: Sequence[Cost]) -> Iterator[Claim]:
    """Time and memory of large groups; only the smaller one has a figure to reach."""
    for cost in costs:
        text = f"{cost.policy}, 58 x 256 on {cost.ranks} x {cost.slots}, one core"
        found = (
            f"{cost.cpu_ms:.0f} ms CPU (least {cost.least_cpu_ms:.0f}), "
            f"{cost.wall_ms:.0f} ms wall; "
            f"first plan {cost.first_cpu_ms:.0f} ms; start {cost.start_s:.1f} s; "
            f"{cost.resident_mib:.0f} MiB"
        )
        if cost.ranks > 32:
            yield Claim(text, found, holds=True)
        else:
            yield Claim(f"{text}: below {PLAN_MS:.0f} ms CPU", found, cost.cpu_ms < PLAN_MS)


def _row(rows: Sequence[Row], policy: str) -> Row | None:
    """The row of that policy, if it has figures."""
    return next((row for row in rows if row.policy == policy and not row.error), None)
