"""What was refused of other nodes: all of it counted, each offender's first logged.

Owns the counts, and how many lines strangers can cause. Must not know why anything is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from eplbd.core.events import Note

LINES_MAX = 128
"""Offenders that are told of until the trust directory is read again: keys cost a stranger nothing,
and lines do."""


class Complaints:
    """note: writes a line of the log."""

    def __init__(self, reasons: tuple[str, ...], note: Callable[[Note], None]) -> None:
        self._counts = Counter(dict.fromkeys(reasons, 0))
        self._note = note
        self._told: set[tuple[str, object]] = set()

    def add(self, reason: str, offender: object, event: str, **fields: object) -> None:
        """Count it, and say it if this offender has not given that reason before."""
        self._counts[reason] += 1
        if (reason, offender) not in self._told and len(self._told) < LINES_MAX:
            self._told.add((reason, offender))
            self._note(Note("warning", event, {"reason": reason, **fields}))

    def begin_anew(self) -> None:
        """Whoever offends from now on is told of again."""
        self._told.clear()

    @property
    def counts(self) -> Mapping[str, int]:
        """By reason."""
        return self._counts
