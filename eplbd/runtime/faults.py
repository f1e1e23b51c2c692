"""What each policy did wrong last: a small file in the state directory, for `eplbd policies`.

Owns the file's form and the one sentence that is kept of a traceback. Nothing depends on it: a file
that cannot be read costs the operator a column. It blocks, and belongs in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from eplbd.core.events import RememberFault
from eplbd.wholefile import replacing

FILE = "policies.json"
SENTENCE_CHARS = 200


class LastFault(msgspec.Struct, frozen=True):
    """The newest fault of one policy. at: UTC. faults: how many there were so far."""

    at: datetime
    outcome: str
    reason: str
    faults: int = 1

    def __str__(self) -> str:
        """As a table shows it."""
        return f"{self.at:%Y-%m-%d %H:%M} {self.outcome}: {self.reason}"


_DECODE = msgspec.json.Decoder(dict[str, LastFault]).decode


def read_faults(directory: Path) -> dict[str, LastFault]:
    """What is known of each policy, by the name that it was configured under; perhaps nothing.

    Raises:
        OSError: The file is there and cannot be read.
    """
    try:
        return _DECODE((directory / FILE).read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def write_faults(directory: Path, faults: Mapping[str, RememberFault]) -> None:
    """Add the newest fault of each policy.

    Raises:
        OSError: It could not be written; what there was is still there.
    """
    if not faults:
        return
    known, now = read_faults(directory), datetime.now(UTC)
    for name, fault in faults.items():
        count = known[name].faults + 1 if name in known else 1
        known[name] = LastFault(now, fault.outcome, sentence(fault.detail), count)
    with replacing(directory / FILE) as file:
        file.write(msgspec.json.format(msgspec.json.encode(known)))


def sentence(detail: str) -> str:
    """One line of a fault's detail: what stands before a traceback, and the last of that."""
    head, mark, trace = detail.partition("Traceback (most recent call last)")
    lines = [part.strip().splitlines() for part in (head, trace if mark else "")]
    line = ": ".join(part[i].strip() for part, i in zip(lines, (0, -1), strict=True) if part) or "-"
    return line if len(line) <= SENTENCE_CHARS else line[: SENTENCE_CHARS - 1] + "…"
