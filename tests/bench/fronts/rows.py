"""What was measured: one row per policy and load, and the file that rows are kept in.

Owns the fields of a row and its JSON. Must not know how anything is measured or judged.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One policy on one load.

    par: load of the hottest rank over the mean one, paid step by step on the next window, mean over
    layers and windows. moves: experts brought to a rank, per layer and plan. gap: distance of the
    planned window's PAR from its lower bound, in percent. wall_ms, cpu_ms: a plan of all layers,
    median. error: why there are no figures. limit_s: CPU seconds that all its plans could take.
    key: what the figures depend on.
    """

    load: str
    policy: str
    par: float = 0.0
    moves: float = 0.0
    gap: float = 0.0
    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    error: str = ""
    too_slow: bool = False
    limit_s: float = 0.0
    key: str = ""


class Kept:
    """Rows on disk, so that a run that was stopped goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_bytes().splitlines() if path.exists() else []
        rows = [msgspec.json.decode(line, type=Row) for line in lines]
        self._rows = {(row.load, row.policy, row.key): row for row in rows}

    def find(self, load: str, policy: str, key: str, limit_s: float) -> Row | None:
        """The row of that key; none if there is none, or if it was cut short by a lower limit."""
        row = self._rows.get((load, policy, key))
        return None if row is not None and row.too_slow and row.limit_s < limit_s else row

    def keep(self, row: Row, key: str, limit_s: float) -> Row:
        """Write it down under that key."""
        row = msgspec.structs.replace(row, key=key, limit_s=limit_s)
        self._rows[row.load, row.policy, key] = row
        append(self._path, [row])
        return row


def append(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON, one per line, after what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
