"""What a test and a worker of the chaos suite say to each other: one JSON object per line.

The first line to a worker is its `Setting`; rank 0 answers with the port of the store that it
hosts. Every later line is a `Command` and is answered with one `Report`, in order.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

WINDOW_FORWARDS = 48
"""Then other experts are hot: there is always something to balance."""


class Fault(enum.StrEnum):
    """What can be made to go wrong in a worker; each strikes once, as soon as it can."""

    REFUSE = "refuse a reservation"
    REFUSE_MAPS = "refuse the maps"
    FAIL_STAGE = "fail a round"
    SLOW_STAGE = "hold up a round"
    CUT_LANE = "cut the lane"
    DAMAGE = "flip a byte in a staging buffer"
    SLOW_REGISTER = "hold up the register's abort of a flip"
    PAUSE_AGENT = "pause the agent's thread"
    KILL_AGENT = "end the agent's thread while it is armed"


class Setting(msgspec.Struct, frozen=True):
    """One worker. port: of the store, 0 for rank 0, which hosts it. period_s: of a step, at least.

    transfer_timeout_s: of the executor. host, interface: where the store is, and the network device
    by which the ranks reach each other. group: its name.
    """

    rank: int
    ranks: int
    port: int
    socket: str
    dispatch: str
    period_s: float
    transfer_timeout_s: float
    host: str = "127.0.0.1"
    interface: str = "lo"
    group: str = "chaos"


class Tell(msgspec.Struct, frozen=True, tag=True):
    """Report at once."""


class Audit(msgspec.Struct, frozen=True, tag=True):
    """Report right before forward `at`, on the forward's thread: between two forwards."""

    at: int


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Start the longest gap and the longest hook afresh."""


class Inject(msgspec.Struct, frozen=True, tag=True):
    """Let a fault strike; seconds: how long, where that is a question."""

    fault: Fault
    seconds: float = 0.0


class RoundTrip(msgspec.Struct, frozen=True, tag=True):
    """Ask the register a few times; the slowest answer is `register_s` from then on."""


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Leave before forward `at`, which must be the same on all ranks."""

    at: int


Command: TypeAlias = Tell | Audit | Forget | Inject | RoundTrip | Leave


class Flip(msgspec.Struct, frozen=True):
    """A map that came into force, before `forward`."""

    forward: int
    epoch: int
    digest: str


class Report(msgspec.Struct, frozen=True):
    """One rank, as it stands.

    digest, epoch, term, standing, connected: of the agent. map_digest: of what the map's tensor
    says. tables_right: whether its other tables follow from that; looked at in an audit only.
    flips: the newest, oldest first. wrong: forwards whose output was not the twin's. max_gap_s:
    longest time from one forward to the next, at `gap_at`; max_hook_s: longest time in a call of
    the hook, at `hook_at`; max_twin_s: longest forward of the twin, which nothing of eplbd touches.
    struck: faults that struck. failures, lane, rounds, commits: of the executor.
    """

    rank: int
    forward: int
    epoch: int
    term: int
    digest: str
    standing: str
    connected: bool
    agent_alive: bool
    map_digest: str
    tables_right: bool | None
    flips: list[Flip]
    wrong: list[int]
    max_gap_s: float
    gap_at: int
    max_hook_s: float
    hook_at: int
    max_twin_s: float
    struck: list[str]
    lane: int
    failures: int
    rounds: int
    commits: int
    garbled: int
    register_s: float
