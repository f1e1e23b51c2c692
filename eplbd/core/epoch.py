"""The words of one epoch: its phases, the orders a leader gives, the answers agents give.

The machines that use them are `leader.py` and `agent.py`.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

from eplbd.core import messages as m

Order: TypeAlias = m.Prepare | m.Stage | m.Arm | m.Decide | m.Confirm | m.Abort

Answer: TypeAlias = (
    m.Prepared
    | m.Nack
    | m.Staged
    | m.Armed
    | m.Late
    | m.Decided
    | m.Undecided
    | m.Committed
    | m.Dropped
)


class Phase(enum.StrEnum):
    """Where the transaction stands."""

    PREPARE = "prepare"
    OPEN = "open"
    STAGE = "stage"
    ARM = "arm"
    REVOKE = "revoke"
    DECIDE = "decide"
    COMMIT = "commit"
    CLOSE = "close"
    SETTLED = "settled"
    ABORTED = "aborted"


ASKING = frozenset({Phase.OPEN, Phase.REVOKE, Phase.DECIDE})
ENDED = frozenset({Phase.SETTLED, Phase.ABORTED})
