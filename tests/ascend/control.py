"""What a test tells a rank's process, and what it hears."""

from __future__ import annotations

import msgspec


class Case(msgspec.Struct, frozen=True):
    """How the experts are kept.

    scheme: as checkpoints name it, "" for none. private: weights are cast to FRACTAL_NZ.
    """

    scheme: str = ""
    fused_mc2: int = 0
    private: bool = False
    group_size: int = 0
    version: str = "1.0.0"
    redundant: int = 2
    tp_size: int = 1
    dispatch: str = "MC2"
    bias: bool = False


class Setting(msgspec.Struct, frozen=True):
    """One rank. port: of the store. record: file for the engine's record, or None."""

    number: int
    source: str
    rank: int
    ranks: int
    port: int
    socket: str
    case: Case
    epochs: int = 3
    record: str | None = None


class Report(msgspec.Struct, frozen=True):
    """What became of it. wrong: everything that is not as the map says; empty is good.

    received_bytes: of experts that came from the other rank. retired: the engine's own balancer and
    its processes are gone. recorded: digest of the placement that the engine's own reader finds in
    its record. complaint: why it was not attached, if it was not.
    """

    rank: int
    complaint: str = ""
    epoch: int = 0
    digest: str = ""
    received_bytes: int = 0
    forwards: int = 0
    checked_bytes: int = 0
    retired: bool = False
    recorded: str = ""
    wrong: list[str] = []
