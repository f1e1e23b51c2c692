"""What the machines are told: figures with units, decided by the operator, passed in as values.

Names and defaults equal the sections of `eplbd.toml` (`eplbd.config` fills these). The figures'
reasons stand there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eplbd.core.placement import Placement


@dataclass(frozen=True, slots=True)
class BalanceSettings:
    """When to rebalance, and what must be gained."""

    mode: str = "dynamic"
    interval_s: float = 10.0
    window_steps: int = 512
    min_steps: int = 64
    par_trigger: float = 1.05
    horizon_s: float = 600.0
    min_gain: float = 0.01
    phase: str = "all"
    max_moves: int = 0
    pause_s: float = 1.0
    opening: str = "stored"
    rank_speed: tuple[str, ...] = ()
    measure_speed: bool = False
    share_heat: tuple[str, ...] = ()
    rollout: str = "together"


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """Whether heat and placements are kept on disk."""

    enabled: bool = False


@dataclass(frozen=True, slots=True)
class EpochSettings:
    """Size and deadlines of one transaction.

    Forwards are the shared clock, seconds the leader's own.
    """

    experts_per_rank: int = 2
    margin_forwards: int = 16
    guard_forwards: int = 4
    arm_attempts: int = 5
    prepare_timeout_s: float = 5.0
    stage_timeout_s: float = 30.0
    arm_timeout_s: float = 5.0
    decide_timeout_s: float = 2.0
    settle_timeout_s: float = 10.0
    resend_s: float = 0.25


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How much of the bubbles transfers may use, and what links carry: bytes per second, or 0."""

    inflation_ceiling: float = 1.05
    node_bytes_per_s: float = 0.0
    network_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Signs of life, and what the groups together may ask of memory."""

    heartbeat_s: float = 0.5
    silence_s: float = 3.0
    max_books_bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What a relay does; `leader` and `leader_key` hold against what workers read in the store."""

    leader: str = ""
    leader_key: str = ""
    interval_s: float = 0.25


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Who plans."""

    name: str = "incremental"
    shadow: tuple[str, ...] = ()
    deadline_s: float = 10.0
    failures_until_suspended: int = 3


@dataclass(frozen=True, slots=True)
class AlarmSettings:
    """When to say that something is wrong although nothing has failed."""

    no_worker_s: float = 60.0
    heat_stale_s: float = 60.0
    epoch_overdue_s: float = 120.0
    losing_cycles: int = 3
    kept_share: float = 0.5


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it."""

    balance: BalanceSettings = field(default_factory=BalanceSettings)
    epoch: EpochSettings = field(default_factory=EpochSettings)
    transfer: TransferSettings = field(default_factory=TransferSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    record: RecordSettings = field(default_factory=RecordSettings)
    alarms: AlarmSettings = field(default_factory=AlarmSettings)
    map: Placement | None = None
    """What mode `static` goes to."""

    @property
    def recording(self) -> bool:
        """Whether steps are to be recorded, by their own switch or by the mode."""
        return self.record.enabled or self.balance.mode == "record"
