"""Who is better: a point of theirs against the front of ours, by balance and by moves.

Owns the comparison of rows. Must not know loads, policies or how a row was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.bench.fronts.rows import Row

LEVEL = 1.005
"""PAR within half a percent counts as the same balance: recorded traces repeat no better."""
HAIR = 5e-4
"""A relative difference that no table shows."""


class Verdict(StrEnum):
    """What ours make of a peer's point."""

    DOMINATED = "dominated"
    TIE = "tie"
    MISSED = "missed"


class Duel(StrEnum):
    """What one point of ours is beside one of a peer's."""

    DOMINATES = "dominates"
    TIE = "tie"
    TRADE = "trade"
    BEATEN = "beaten"


@dataclass(frozen=True, slots=True)
class Judged:
    """A peer's point. best: ours of no more moves; fewest: ours of no worse balance, if any is."""

    peer: Row
    best: Row | None
    fewest: Row | None
    verdict: Verdict


def best(rows: Sequence[Row], moves: float) -> Row | None:
    """The lowest PAR among rows of at most `moves`."""
    few = [row for row in rows if not row.error and row.moves <= moves * (1 + HAIR)]
    return min(few, key=lambda row: (row.par, row.moves), default=None)


def fewest(rows: Sequence[Row], par: float) -> Row | None:
    """The fewest moves among rows of at most `par`."""
    good = [row for row in rows if not row.error and row.par <= par]
    return min(good, key=lambda row: (row.moves, row.par), default=None)


def judge(peer: Row, ours: Sequence[Row]) -> Judged:
    """Dominated: one of ours is no worse in both and better in one. Tie: in both within `LEVEL`."""
    nearest, cheapest = best(ours, peer.moves), fewest(ours, peer.par * LEVEL)
    verdict = Verdict.MISSED
    if nearest is not None and nearest.par <= peer.par * LEVEL:
        verdict = Verdict.TIE
    if nearest is not None and nearest.par < peer.par * (1 - HAIR):
        verdict = Verdict.DOMINATED
    saving = fewest(ours, peer.par)
    if saving is not None and saving.moves < peer.moves * (1 - HAIR):
        verdict = Verdict.DOMINATED
    return Judged(peer, nearest, cheapest, verdict)


def duel(peer: Row, mine: Row) -> Duel:
    """One of ours alone: a sweep finds the best of many, an operator has one setting.

    A trade is better in one and worse in the other.
    """
    match judge(peer, [mine]).verdict:
        case Verdict.DOMINATED:
            return Duel.DOMINATES
        case Verdict.TIE:
            return Duel.TIE
        case Verdict.MISSED:
            beaten = judge(mine, [peer]).verdict is Verdict.DOMINATED
            return Duel.BEATEN if beaten else Duel.TRADE
