"""Every event that `Node.step` takes and every effect that it returns, as two unions.

Events are past tense, effects imperative. Time is `Tick(now)`: seconds of a monotonic clock that
only the shell reads; the shell ticks before it hands over what it received, so that `now` is never
older than the message. An effect that completes later returns an event.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from eplbd.core.cluster import HangUp, Led, Nod, Relayed, RelayGone, Up
from eplbd.core.commands import Answer, Commanded, Keep, OrdersRestored, RememberOrders

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from eplbd.core.assembly import Step
    from eplbd.core.cluster import Peer
    from eplbd.core.heat import Budget, Heat
    from eplbd.core.messages import FromAgent, FromLeader
    from eplbd.core.opening import Likeness
    from eplbd.core.placement import Placement
    from eplbd.core.settings import Settings
    from eplbd.core.topology import Topology

# --- events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went on; `now` in seconds, monotonic."""

    now: float


@dataclass(frozen=True, slots=True)
class Received:
    """A peer's message was decoded; `seq` is the sender's count of messages in this session."""

    peer: bytes
    seq: int
    message: FromAgent


@dataclass(frozen=True, slots=True)
class Garbled:
    """A peer's frames could not be decoded; `reason` names the frame and what was expected."""

    peer: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The transport has no route to the peer any more."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Restored:
    """What the state directory held for a group when the daemon started."""

    group: str
    term: int
    epoch: int
    placement: Placement | None = field(default=None, compare=False)
    """Where its last epoch settled; None where nothing but the term is of use."""
    likeness: Likeness | None = None


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
    """The operator changed settings (SIGHUP).

    Another `policy.name` promotes that policy: it plans from the placement in force, and nothing
    that is known of the group is lost. policies: whether what runs the policies was changed; those
    that were suspended are asked again then.
    """

    settings: Settings
    policies: bool = False


@dataclass(frozen=True, slots=True)
class Stopping:
    """The operator asked for a stop (SIGTERM): close what can be closed, then `Stop`."""


Event: TypeAlias = (
    Tick
    | Received
    | Garbled
    | Unreachable
    | Relayed
    | RelayGone
    | Led
    | Restored
    | PersistFailed
    | PolicyAnswered
    | PolicyFailed
    | Reconfigured
    | Commanded
    | OrdersRestored
    | Stopping
)

# --- effects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send to a peer; may be lost, the machine sends again until answered.

    What one turn has for ranks behind one relay makes one bundle.
    """

    peer: Peer
    message: FromLeader


@dataclass(frozen=True, slots=True, eq=False)
class AskPolicy:
    """Ask the policy child; answer with `PolicyAnswered` or `PolicyFailed` of the same request.

    shadow: whether it is asked beside the active policy, which must not be delayed by it.
    """

    request: int
    group: str
    policy: str
    heat: Heat
    topology: Topology
    current: Placement
    budget: Budget
    shadow: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Persist:
    """Write a group's settled placement to the state directory; answer only a failure."""

    group: str
    term: int
    epoch: int
    placement: Placement
    likeness: Likeness | None = None
    """What a later life of the group must have in common with this one to go back to it."""


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
    by_link: tuple[int, ...] = (0, 0, 0)
    """Moves per `Link`: within a rank, within a node, over the network."""
    story: tuple[str, ...] = ()
    """Of one that was aborted: who said what, and when."""
    bubble_used: float = 0.0
    """Share of its bubbles that rounds took, on the rank that used most; 0 where none has said."""


@dataclass(frozen=True, slots=True)
class CycleEnded:
    """One line per rebalance: what was predicted and what came of it."""

    group: str
    policy: str
    outcome: str
    """applied, partly, unchanged, refused, recorded or failed."""
    reason: str
    par_before: float
    par_predicted: float
    """Of the proposal, on the newest steps of its window, which the policy was not shown."""
    par_realised: float
    """Measured loads of the next window: only steps that ran under the new map."""
    moves: int
    bytes: int
    epochs_settled: int
    epochs_aborted: int
    policy_s: float
    layers: tuple[float, ...] = ()
    """Realised PAR per layer."""
    gain_predicted: float = 0.0
    """Share by which the hottest ranks' load was to fall, as judged before the moves."""
    gain_realised: float = 0.0
    """Of the steps after them, against the map before on the same steps; 0 where too few came."""
    stall_s: float = 0.0
    """Sum over its settled epochs, as in their lines."""
    bubble_used: float = 0.0
    """Mean over its settled epochs, as in their lines."""


@dataclass(frozen=True, slots=True)
class ShadowScored:
    """One line per cycle of a shadow: what it would have done, and how the next window went.

    The figures of the group itself (`active_...`) are of the same steps.
    """

    group: str
    policy: str
    outcome: str
    """applied, unchanged, refused, rested (there was nothing to ask) or failed."""
    reason: str
    steps: int
    """Steps of the next window that were compared."""
    par_before: float
    par_predicted: float
    par_mean: float
    """Mean over steps and layers on its own placement, an expert's heat split as that says."""
    par_p95: float
    par_p99: float
    """Percentiles over steps of the mean over layers."""
    active_par_mean: float
    """Measured loads."""
    active_par_p95: float
    active_par_p99: float
    moves: int
    active_moves: int
    """Settled since the shadow was asked."""
    plan_s: float


@dataclass(frozen=True, slots=True, eq=False)
class OpenRecord:
    """Record this group from now on: the figures that all its steps share."""

    group: str
    incarnation: str
    topology: Topology
    layers: int
    experts: int
    expert_bytes: int
    counts: str


@dataclass(frozen=True, slots=True, eq=False)
class RecordSteps:
    """Record complete steps of a group that was opened; answer nothing."""

    group: str
    steps: tuple[Step, ...]


class Status(enum.StrEnum):
    """What a placement that is recorded is to its group."""

    PLANNED = "planned"
    """Of an epoch that has begun: steps may run under it before it is known to be settled."""
    IN_FORCE = "in-force"
    PROPOSED = "proposed"
    """By the policy, and valid, while `epoch` was in force."""


@dataclass(frozen=True, slots=True, eq=False)
class RecordPlacement:
    """Record a placement of a group that was opened."""

    group: str
    epoch: int
    placement: Placement
    status: Status


@dataclass(frozen=True, slots=True)
class RememberFault:
    """Keep what a policy did wrong, beyond this daemon's life, for whoever lists policies."""

    policy: str
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True)
class Note:
    """Anything else worth a line; `level` is info, warning or error."""

    level: str
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """Everything that could be closed is closed; the shell may leave."""


Effect: TypeAlias = (
    Send
    | Nod
    | Up
    | HangUp
    | AskPolicy
    | Persist
    | EpochEnded
    | CycleEnded
    | ShadowScored
    | OpenRecord
    | RecordSteps
    | RecordPlacement
    | RememberFault
    | Answer
    | Keep
    | RememberOrders
    | Note
    | Stop
)
