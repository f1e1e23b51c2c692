"""Settings under which short schedules see whole rebalances, and the size of a simulated group."""

from __future__ import annotations

from dataclasses import dataclass, replace

from eplbd.core.settings import (
    AlarmSettings,
    BalanceSettings,
    EpochSettings,
    SessionSettings,
    Settings,
)

QUICK = Settings(
    balance=BalanceSettings(
        interval_s=0.2,
        window_steps=16,
        min_steps=4,
        par_trigger=0.0,
        min_gain=-1e9,
        horizon_s=0.0,
        pause_s=0.1,
    ),
    epoch=EpochSettings(
        margin_forwards=4,
        guard_forwards=2,
        prepare_timeout_s=1.0,
        stage_timeout_s=2.0,
        arm_timeout_s=1.0,
        decide_timeout_s=0.5,
        settle_timeout_s=1.0,
        resend_s=0.1,
    ),
    session=SessionSettings(heartbeat_s=0.2, silence_s=1.0),
    alarms=AlarmSettings(losing_cycles=0),
)
"""Everything is accepted and soon over, so that short schedules see whole rebalances; what is
proposed is worth nothing, and nobody is suspended for it."""

PATIENT = replace(QUICK, epoch=replace(QUICK.epoch, prepare_timeout_s=9.0, decide_timeout_s=9.0))
"""For schedules in which time passes between any two messages and nobody is to blame for it."""

TICK_S = 0.05


@dataclass
class Shape:
    """Size of a simulated group."""

    layers: int = 2
    experts: int = 5
    ranks: int = 3
    slots_per_rank: int = 3
