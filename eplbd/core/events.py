"""Every event that `Node.step` takes and every effect that it returns, as two unions.

Events are past tense, effects imperative. Time is `Tick(now)`: seconds of a monotonic clock that
only the shell reads; the shell ticks before it hands over what it received, so that `now` is never
older than the message. An effect that completes later returns an event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from eplbd.core.heat import Budget, Heat
    from eplbd.core.messages import FromAgent, FromLeader
    from eplbd.core.placement import Placement
    from eplbd.core.settings import Settings
    from eplbd.core.topology import Topology

Peer: TypeAlias = bytes
"""Identity of a connection, given by the transport; never trusted for authority."""

# --- events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went on; `now` in seconds, monotonic."""

    now: float


@dataclass(frozen=True, slots=True)
class Received:
    """A peer's message was decoded; `seq` is the sender's count of messages in this session."""

    peer: Peer
    seq: int
    message: FromAgent


@dataclass(frozen=True, slots=True)
class Garbled:
    """A peer's frames could not be decoded; `reason` names the frame and what was expected."""

    peer: Peer
    reason: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The transport has no route to the peer any more."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Restored:
    """What the state directory held for a group when the daemon started."""

    group: str
    term: int
    epoch: int


@dataclass(frozen=True, slots=True)
class PersistFailed:
    """The state directory refused a record; balancing goes on, the workers hold the truth."""

    group: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class PolicyAnswered:
    """A policy proposed `slots`, perhaps with `shares`; any arrays, not validated."""

    request: int
    slots: NDArray[np.generic]
    duration_s: float
    shares: NDArray[np.generic] | None = None


@dataclass(frozen=True, slots=True)
class PolicyFailed:
    """A policy gave no answer; `outcome` is one of raised, timeout, crashed, invalid, memory."""

    request: int
    outcome: str
    detail: str
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The operator changed settings (SIGHUP)."""

    settings: Settings


@dataclass(frozen=True, slots=True)
class Stopping:
    """The operator asked for a stop (SIGTERM): close what can be closed, then `Stop`."""


Event: TypeAlias = (
    Tick
    | Received
    | Garbled
    | Unreachable
    | Restored
    | PersistFailed
    | PolicyAnswered
    | PolicyFailed
    | Reconfigured
    | Stopping
)

# --- effects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send to a peer; may be lost, the machine sends again until answered."""

    peer: Peer
    message: FromLeader


@dataclass(frozen=True, slots=True, eq=False)
class AskPolicy:
    """Ask the policy child; answer with `PolicyAnswered` or `PolicyFailed` of the same request."""

    request: int
    group: str
    policy: str
    heat: Heat
    topology: Topology
    current: Placement
    budget: Budget


@dataclass(frozen=True, slots=True, eq=False)
class Persist:
    """Write a group's settled placement to the state directory; answer only a failure."""

    group: str
    term: int
    epoch: int
    placement: Placement


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """The canonical line of one epoch; seconds, bytes, forwards as named."""

    group: str
    term: int
    epoch: int
    outcome: str
    """settled or aborted."""
    reason: str
    layers: int
    moves: int
    bytes: int
    rounds: int
    attempts: int
    at: int
    prepare_s: float
    stage_s: float
    commit_s: float
    stall_s: float
    policy: str
    lost_ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CycleEnded:
    """One line per rebalance: what was predicted and what came of it."""

    group: str
    policy: str
    outcome: str
    """applied, partly, unchanged, refused or failed."""
    reason: str
    par_before: float
    par_predicted: float
    par_realised: float
    moves: int
    bytes: int
    epochs_settled: int
    epochs_aborted: int
    policy_s: float
    layers: tuple[float, ...] = ()
    """Realised PAR per layer."""


@dataclass(frozen=True, slots=True)
class Note:
    """Anything else worth a line; `level` is info, warning or error."""

    level: str
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """Everything that could be closed is closed; the shell may leave."""


Effect: TypeAlias = Send | AskPolicy | Persist | EpochEnded | CycleEnded | Note | Stop
