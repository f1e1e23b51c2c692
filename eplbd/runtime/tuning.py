"""From the operator's configuration to what the core is told, and what a reload can change.

Owns the mapping. Must not know files nor signals.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TypeVar

import msgspec

from eplbd.config import Config
from eplbd.core.placement import Placement
from eplbd.core.settings import (
    AlarmSettings,
    BalanceSettings,
    ClusterSettings,
    EpochSettings,
    PolicySettings,
    RecordSettings,
    SessionSettings,
    Settings,
    TransferSettings,
)

FIXED = frozenset(
    {
        "cluster.advertise",
        "cluster.key_file",
        "cluster.listen",
        "control.socket",
        "control.socket_mode",
        "daemon.socket",
        "daemon.socket_mode",
        "daemon.state_dir",
        "daemon.state_keep_days",
        "daemon.state_max_bytes",
        "log.format",
        "metrics.address",
        "metrics.enabled",
        "metrics.port",
        "record.dir",
        "record.max_bytes",
        "record.total_max_bytes",
        "session.max_message_bytes",
        "stream.enabled",
        "stream.interval_s",
        "stream.keep_events",
        "stream.socket",
        "stream.socket_mode",
    }
)
"""Keys that are read once: what they decide is bound, locked or agreed upon at the start."""

S = TypeVar("S")


def settings_of(config: Config, fixed: Placement | None = None) -> Settings:
    """The figures that the core's machines are told; `fixed` is what `balance.map` holds."""
    return Settings(
        balance=_section(BalanceSettings, config.balance),
        epoch=_section(EpochSettings, config.epoch),
        transfer=_section(TransferSettings, config.transfer),
        session=_section(SessionSettings, config.session),
        cluster=_section(ClusterSettings, config.cluster),
        policy=_section(PolicySettings, config.policy),
        record=_section(RecordSettings, config.record),
        alarms=_section(AlarmSettings, config.alarms),
        map=fixed,
    )


def changed_keys(old: Config, new: Config) -> list[str]:
    """Every `section.key` whose value differs."""
    before, after = _flat(old), _flat(new)
    return [key for key, value in after.items() if before[key] != value]


def _section(kind: type[S], section: msgspec.Struct) -> S:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # dataclasses all
    return kind(**{name: getattr(section, name) for name in names})


def _flat(config: Config) -> dict[str, object]:
    return {
        f"{section}.{key}": value
        for section, table in msgspec.structs.asdict(config).items()
        for key, value in msgspec.structs.asdict(table).items()
    }
