"""The story of an epoch that did not settle, in a few lines: who said what, and when.

Owns how a leader's notes become lines of one record. Must not know how they were taken, nor where
the record goes.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from eplbd.core import messages as m

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Said: TypeAlias = tuple[int, object]
"""A rank and its message, or in a word what became of it."""

LINES_MAX = 40
"""A story is one record of the log: of a longer one its beginning and its end are told."""

_HEAD = 8


def tell(story: Iterable[tuple[float, object]]) -> tuple[str, ...]:
    """The story in lines, oldest first; times are seconds since its first note.

    story: notes `(seconds, what)`, where `what` is a text (a phase that was entered, a reason) or
    `Said`. What several ranks say one after the other in the same words is one line.
    """
    notes = list(story)
    if not notes:
        return ()
    began = notes[0][0]
    lines = []
    for words, same in groupby(notes, key=lambda note: _words(note[1])):
        told = list(same)
        ranks = sorted({what[0] for _, what in told if isinstance(what, tuple)})
        who = f"{_ranks(ranks)}: " if ranks else ""
        lines.append(f"+{told[0][0] - began:.3f} s {who}{words}")
    if len(lines) > LINES_MAX:
        left_out = len(lines) - LINES_MAX + 1
        lines[_HEAD : _HEAD + left_out] = [f"({left_out} lines left out)"]
    return tuple(lines)


def _words(what: object) -> str:
    if not isinstance(what, tuple):
        return str(what)
    _, said = what
    match said:
        case str():
            return said
        case m.Nack(reason=reason):
            more = f", {reason}"
        case m.Late(attempt=attempt, forward=forward):
            more = f" for attempt {attempt}, at forward {forward}"
        case m.Decided(gate=gate, attempt=attempt, verdict=verdict):
            more = f", {gate} {attempt} is {verdict}"
        case m.Undecided(gate=gate, attempt=attempt, reason=reason):
            more = f", {gate} {attempt}: {reason}"
        case m.Stands(epoch=epoch, standing=standing, pending=pending):
            more = f" {standing} in epoch {epoch}, pending {pending}"
        case _:
            more = ""
    return f"{type(said).__name__.lower()}{more}"


def _ranks(ranks: Sequence[int]) -> str:
    """Sorted numbers, runs of them joined: `ranks 0-3, 7`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    listed = ", ".join("-".join(map(str, run)) for run in runs)
    return f"rank {listed}" if len(ranks) == 1 else f"ranks {listed}"
