"""What leader and agents say to each other: every protocol message, once.

Owns the messages as values. Must not know bytes (`eplbd.wire` encodes them) nor who handles them. A
message names its sender only by its session: no message carries a rank that could be forged. The
codec ships each array field as a frame of its own and refuses any other dtype or rank.

Messages of an epoch carry `(term, epoch)`, those of an arming attempt also `attempt`: a stale one
matches nothing. The normative text is `eplbd/wire/PROTOCOL.md`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from eplbd.core.fields import array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WIRE_VERSION = 1
"""Newest wire version this release speaks."""

WIRE_VERSION_MIN = 1
"""Oldest wire version this release still understands."""


class Verdict(enum.StrEnum):
    """What a key of the decision register holds, once and for all."""

    COMMIT = "commit"
    ABORT = "abort"


class Gate(enum.StrEnum):
    """The two decisions of an epoch that ranks must share."""

    STAGE = "stage"
    """Will every rank carry the rounds through?"""
    FLIP = "flip"
    """Will every rank flip to the new map at the armed forward? One per arming attempt."""


class Dispatch(enum.StrEnum):
    """How the engine brings tokens to experts."""

    ALL_TO_ALL = "all-to-all"
    """Each rank routes its own tokens: what all ranks sent equals what all ranks received."""
    REPLICATED = "replicated"
    """Every rank recomputes the routing of all tokens; maps that differ corrupt outputs."""


class Counts(enum.StrEnum):
    """What a heat report counts."""

    RECEIVED = "received"
    """Tokens that each of the rank's own slots processed."""
    SENT = "sent"
    """Tokens that the rank routed to every slot of the group."""


class Standing(enum.StrEnum):
    """Phase of an agent's epoch machine, as reported to a leader."""

    IDLE = "idle"
    PREPARING = "preparing"
    PREPARED = "prepared"
    STAGING = "staging"
    STAGED = "staged"
    FAILED = "failed"
    ARMED = "armed"
    CONFIRMED = "confirmed"


# --- agent to leader ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a session: who the agent is and what it balances."""

    wire: int
    wire_min: int
    group: str
    """Name of the EP group, chosen by the engine's operator; `default` if there is one."""
    incarnation: str
    """Same on all ranks of one life of the group; of two, the greater is the younger."""
    rank: int
    ranks: int
    node: str
    """Name of the host, equal for ranks that share one."""
    layers: int
    experts: int
    slots_per_rank: int
    term: int
    """Highest term this agent has obeyed; 0 if none."""
    expert_bytes: int
    """Bytes of the largest expert, all its tensors together."""
    layout_digest: str
    """Digest of names, dtypes and shapes of the tensors to move; equal on all ranks."""
    dispatch: Dispatch = Dispatch.ALL_TO_ALL
    counts: Counts = Counts.RECEIVED
    weighted: bool = False
    """Whether this engine can split an expert's tokens unevenly over its replicas."""
    leader: str = ""
    leader_key: str = ""
    """What the group's store says of where rank 0's daemon is reached; empty where nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Stands:
    """How the agent stands: answer to `Welcome`, and when an epoch ended alone or is in the way."""

    term: int
    epoch: int
    digest: str
    standing: Standing
    pending: int
    """Epoch under way, 0 if idle."""
    forward: int
    lane: int
    slots: NDArray[np.int32] = array("int32", 3)
    """Placement in force, `[layers, ranks, slots_per_rank]`."""
    parts: NDArray[np.int32] | None = array("int32", 3, default=None)
    """Its shares, as in `prepare`; left out where every split is even."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The epoch's base, ids and buffers were checked; staging may begin."""

    term: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Nack:
    """The agent cannot go on with the epoch; `reason` is for the operator."""

    term: int
    epoch: int
    reason: str
    lane_broken: bool = False


@dataclass(frozen=True, slots=True)
class Staged:
    """All rounds are done, all checksums match; of `stage_s` rounds were under way `transfer_s`."""

    term: int
    epoch: int
    forward: int = 0
    """Newest forward when staging ended: fresher than any pulse."""
    stage_s: float = 0.0
    bytes_received: int = 0
    transfer_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Armed:
    """Forward `at` will flip, if the register says so."""

    term: int
    epoch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Late:
    """`Arm` came too late: `forward` is already too near."""

    term: int
    epoch: int
    attempt: int
    forward: int


@dataclass(frozen=True, slots=True)
class Decided:
    """What the register holds for a gate."""

    term: int
    epoch: int
    gate: Gate
    attempt: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Undecided:
    """The register could not be asked; the leader tries another agent."""

    term: int
    epoch: int
    gate: Gate
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The map of `digest` is in force since forward `at`."""

    term: int
    epoch: int
    digest: str
    at: int
    stall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Dropped:
    """Nothing of the epoch is left on this rank."""

    term: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Pulse:
    """Sign of life, and the clock. Times are means since the last one, 0.0 where none was."""

    forward: int
    forward_s: float = 0.0
    staging_forward_s: float = 0.0
    gap_s: float = 0.0
    lost_steps: int = 0
    masked: bool = False
    """Whether the engine gives this rank no tokens: it is to be one that can be spared."""


@dataclass(frozen=True, slots=True, eq=False)
class HeatReport:
    """Per-step heat of one rank, all under one placement. Lossy: a gap is counted, never filled."""

    epoch: int
    first_forward: int
    phase: str
    counts: NDArray[np.int32] = array("int32", 3)
    """Tokens, `[steps, layers, slots_per_rank]` (received) or `[steps, layers, slots]` (sent)."""
    routed: NDArray[np.int64] = array("int64", 1)
    """Token-expert assignments this rank routed, all layers, `[steps]`."""
    tokens: NDArray[np.int32] = array("int32", 1)
    """Valid tokens, padding excluded, `[steps]`."""
    dummy: NDArray[np.bool_] = array("bool", 1)


@dataclass(frozen=True, slots=True)
class Bye:
    """The worker leaves; its rank will not answer again."""

    reason: str


# --- leader to agent ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Greet:
    """The leader knows no session with this peer: say `Hello`."""


@dataclass(frozen=True, slots=True)
class Door:
    """To rank 0: publish in the group's store where the daemons of other nodes reach this one."""

    endpoint: str
    key: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """The session stands; obey `term` from now on, nothing older."""

    term: int
    wire: int
    heartbeat_s: float
    silence_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """No session; `reason` names the fix."""

    reason: str


@dataclass(frozen=True, slots=True)
class Beat:
    """The leader lives."""

    term: int


@dataclass(frozen=True, slots=True, eq=False)
class Prepare:
    """One epoch as this rank sees it, with finished arrays: the worker computes nothing.

    Source: the shape of vllm-ascend's per-layer plan (sends, receives, map row, log2phy), as
    arrays.
    """

    term: int
    epoch: int
    base_digest: str
    target_digest: str
    lane: int
    """Generation of the transport; greater than the agent's means: renew it first."""
    rounds: int
    layers: NDArray[np.int32] = array("int32", 1)
    """Changed layers, ascending, `[n]`."""
    slots: NDArray[np.int32] = array("int32", 3)
    """Their new placement, `[n, ranks, slots_per_rank]`."""
    transfers: NDArray[np.int32] = array("int32", 2)
    """This rank's rows, `[m, len(Col)]`, columns `eplbd.core.rounds.Col`."""
    replica_count: NDArray[np.int32] = array("int32", 2)
    """`[n, experts]`."""
    physical: NDArray[np.int32] = array("int32", 3)
    """Slots of each expert, -1 padded, `[n, experts, max_replicas]`."""
    log2phy: NDArray[np.int32] = array("int32", 2)
    """This rank's choice of slot, `[n, experts]`."""
    expert_map: NDArray[np.int32] = array("int32", 2)
    """Local slot of each expert, -1 if elsewhere, `[n, experts]`."""
    parts: NDArray[np.int32] | None = array("int32", 3, default=None)
    """65,536ths of its expert's tokens that each slot takes, `[n, ranks, slots_per_rank]`; left out
    where these layers split evenly. Only to agents that said `weighted`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """All are prepared and the register says so: issue the rounds, one every `stride` forwards."""

    term: int
    epoch: int
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Arm:
    """Flip at forward `at`; unconfirmed `guard` forwards before it, ask the register."""

    term: int
    epoch: int
    attempt: int
    at: int
    guard: int


@dataclass(frozen=True, slots=True)
class Decide:
    """Write `verdict` into the register for the leader, and answer what it holds."""

    term: int
    epoch: int
    gate: Gate
    attempt: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Confirm:
    """The register holds `commit` for this attempt."""

    term: int
    epoch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Abort:
    """The epoch is over without effect: carry begun rounds through, then discard."""

    term: int
    epoch: int
    reason: str


FromAgent: TypeAlias = (
    Hello
    | Stands
    | Prepared
    | Nack
    | Staged
    | Armed
    | Late
    | Decided
    | Undecided
    | Committed
    | Dropped
    | Pulse
    | HeatReport
    | Bye
)
FromLeader: TypeAlias = (
    Greet | Door | Welcome | Refused | Beat | Prepare | Stage | Arm | Decide | Confirm | Abort
)
Message: TypeAlias = FromAgent | FromLeader
