"""Every event that `Agent.step` takes and every effect that it returns.

The shell (`eplbd.worker.agent`) has three threads of its own: one that talks, one that stages, one
that asks the register. Each effect names the thread that performs it, and what it answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from eplbd.core.events import Tick

if TYPE_CHECKING:
    from eplbd.core.messages import FromAgent, FromLeader, Gate, Prepare, Verdict

# --- events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """The leader's message arrived."""

    message: FromLeader


@dataclass(frozen=True, slots=True)
class Reserved:
    """Staging buffers are claimed for the epoch."""

    term: int
    epoch: int


@dataclass(frozen=True, slots=True)
class ReserveFailed:
    """They are not."""

    term: int
    epoch: int
    reason: str
    lane_broken: bool = False


@dataclass(frozen=True, slots=True)
class RoundsDone:
    """Every round was carried through and every received tensor verified."""

    term: int
    epoch: int
    forward: int = 0
    stage_s: float = 0.0
    bytes_received: int = 0
    transfer_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundsFailed:
    """Rounds are over; something did not arrive or did not match."""

    term: int
    epoch: int
    reason: str
    lane_broken: bool = False


@dataclass(frozen=True, slots=True)
class ArmPlaced:
    """The forward thread will see the arm in time."""

    term: int
    epoch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class ArmMissed:
    """It would not: `forward` has already been reached."""

    term: int
    epoch: int
    attempt: int
    forward: int


@dataclass(frozen=True, slots=True)
class Neared:
    """The armed forward is `guard` away and nobody confirmed."""

    term: int
    epoch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class RegisterAnswered:
    """The register holds `verdict` for the gate."""

    term: int
    epoch: int
    gate: Gate
    attempt: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class RegisterFailed:
    """The register could not be asked in time."""

    term: int
    epoch: int
    gate: Gate
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Flipped:
    """The forward thread copied staging to slots and wrote the map, before forward `at`."""

    term: int
    epoch: int
    at: int
    stall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LeaderFound:
    """The group's store says where rank 0's daemon is reached; both empty where it says nothing."""

    endpoint: str
    key: str


OfWork: TypeAlias = (
    Reserved | ReserveFailed | RoundsDone | RoundsFailed | ArmPlaced | ArmMissed | Neared | Flipped
)
"""What the rank's own threads answer about the epoch under way."""

AgentEvent: TypeAlias = Tick | Heard | OfWork | RegisterAnswered | RegisterFailed | LeaderFound

# --- effects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """Send to the leader."""

    message: FromAgent


@dataclass(frozen=True, slots=True)
class SayHello:
    """Send `Hello`: no leader is known to listen."""

    term: int


@dataclass(frozen=True, slots=True)
class SayPulse:
    """Send `Pulse`, figures by the shell."""


@dataclass(frozen=True, slots=True, eq=False)
class Stand:
    """Send `Stands`; forward by the shell."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """Stager: renew the transport if `prepare.lane` is newer, claim buffers.

    -> Reserved | ReserveFailed.
    """

    prepare: Prepare


@dataclass(frozen=True, slots=True)
class RunRounds:
    """Stager: issue all rounds in order, one every `stride` forwards, verify.

    -> RoundsDone | RoundsFailed.
    """

    term: int
    epoch: int
    stride: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Stager, after whatever it does: release the buffers."""

    term: int
    epoch: int


@dataclass(frozen=True, slots=True)
class PlaceArm:
    """At once: let forward `at` flip, and wake the agent at forward `near`.

    -> ArmPlaced | ArmMissed, then Neared if nobody confirmed.
    """

    term: int
    epoch: int
    attempt: int
    at: int
    near: int


@dataclass(frozen=True, slots=True)
class ResolveArm:
    """At once: tell the forward thread what was decided for the attempt.

    `COMMIT` -> Flipped, at forward `at`.
    """

    attempt: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class AskRegister:
    """Registrar: propose, learn what holds. -> RegisterAnswered | RegisterFailed."""

    term: int
    epoch: int
    gate: Gate
    attempt: int
    proposal: Verdict


@dataclass(frozen=True, slots=True)
class PublishLeader:
    """Registrar: let the group's store say where rank 0's daemon is reached; answer nothing."""

    endpoint: str
    key: str


@dataclass(frozen=True, slots=True)
class SeekLeader:
    """Registrar: ask the group's store where that is. -> LeaderFound, or nothing if it is mute."""


AgentEffect: TypeAlias = (
    Reply
    | SayHello
    | SayPulse
    | Stand
    | Reserve
    | RunRounds
    | Discard
    | PlaceArm
    | ResolveArm
    | AskRegister
    | PublishLeader
    | SeekLeader
)
