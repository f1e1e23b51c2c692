"""What there is to fuzz, by name, and what a fuzzer's process reports."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

import msgspec

from tests.fuzz.dialogue import Said

TARGETS = ("cluster", "decoders", "session")


class Target(Protocol):
    """A module `tests.fuzz.NAME`."""

    def take(self, data: bytes) -> int:
        """Try one input; how many frames that was. Whatever it raises is a finding."""
        ...

    def phrases(self) -> list[Said]:
        """Messages that may be said in any dialogue."""
        ...

    def seeds(self) -> list[bytes]:
        """Inputs to begin with."""
        ...


class Report(msgspec.Struct, frozen=True):
    """What one process did. rss_begin_kib: after its first inputs; rss_kib: its peak."""

    target: str
    inputs: int
    frames: int
    seconds: float
    rss_begin_kib: int
    rss_kib: int


def target_of(name: str) -> Target:
    """The target's module, imported now."""
    return cast("Target", importlib.import_module(f"tests.fuzz.{name}"))
