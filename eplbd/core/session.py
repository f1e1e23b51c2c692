"""One peer's session: what it said in `Hello`, its sequence, its signs of life.

Owns the judgement of a `Hello` and the count of gaps and repeats. Must not know epochs. Nothing
that a peer says about itself gives it authority: access to the socket does, and that is the
operating system's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eplbd.core.messages import WIRE_VERSION, WIRE_VERSION_MIN, HeatReport, Pulse, Staged, Stands

if TYPE_CHECKING:
    from eplbd.core.cluster import Peer
    from eplbd.core.messages import FromAgent, Hello

DIMENSION_LIMIT = 1 << 16
"""No model has more layers, experts, ranks or slots; a larger figure is a mistake or an attack."""

SLOTS_LIMIT = 1 << 24
"""layers x ranks x slots_per_rank of one placement: 64 MiB as int32."""


@dataclass(slots=True)
class Session:
    """One living connection of one rank."""

    peer: Peer
    hello: Hello
    last_heard: float
    seq: int = 0
    gaps: int = 0
    repeats: int = 0
    forward: int = 0
    """Newest that it told of."""
    reports: int = 0
    """Of heat, without those that were refused."""
    heat_at: float | None = None
    """When the newest of them came; seconds, monotonic."""
    lost_steps: int = 0
    """Steps of heat that the agent could not hand on, as it says itself."""

    def received(self, seq: int, now: float) -> None:
        """Count what was lost or repeated on the way; the messages themselves are idempotent."""
        self.last_heard = now
        if seq > self.seq:
            self.gaps += seq - self.seq - 1
            self.seq = seq
        else:
            self.repeats += 1

    def took(self, message: FromAgent, now: float) -> None:
        """Keep what a message that was accepted tells about its rank."""
        match message:
            case HeatReport():
                self.reported(now)
            case Pulse(forward=forward, lost_steps=lost):
                self.forward = max(self.forward, forward)
                self.lost_steps = max(self.lost_steps, lost)
            case Stands(forward=forward) | Staged(forward=forward):
                self.forward = max(self.forward, forward)
            case _:
                pass

    def reported(self, now: float) -> None:
        """A report of heat was booked."""
        self.reports += 1
        self.heat_at = now


def refuse_hello(hello: Hello) -> str:
    """Return why no session can be had with such a peer, with the fix; empty if it can."""
    return _refuse_version(hello) or _refuse_shape(hello)


def _refuse_version(hello: Hello) -> str:
    if hello.wire < WIRE_VERSION_MIN or hello.wire_min > WIRE_VERSION:
        older = "the worker's eplbd" if hello.wire < WIRE_VERSION_MIN else "the eplbd daemon"
        return (
            f"the worker speaks wire versions {hello.wire_min}..{hello.wire}, the daemon "
            f"{WIRE_VERSION_MIN}..{WIRE_VERSION}: upgrade {older}"
        )
    return ""


def _refuse_shape(hello: Hello) -> str:
    sizes = {
        "ranks": hello.ranks,
        "layers": hello.layers,
        "experts": hello.experts,
        "slots_per_rank": hello.slots_per_rank,
    }
    for name, size in sizes.items():
        if not 1 <= size <= DIMENSION_LIMIT:
            return f"hello: {name} is {size}, expected 1..{DIMENSION_LIMIT}"
    if hello.layers * hello.ranks * hello.slots_per_rank > SLOTS_LIMIT:
        return f"hello: layers x ranks x slots_per_rank exceeds {SLOTS_LIMIT}"
    if not 0 <= hello.rank < hello.ranks:
        return f"hello: rank is {hello.rank}, expected 0..{hello.ranks - 1}"
    if hello.experts > hello.ranks * hello.slots_per_rank:
        return (
            f"hello: {hello.experts} experts do not fit into {hello.ranks} ranks x "
            f"{hello.slots_per_rank} slots; give the engine more redundant experts"
        )
    if hello.term < 0 or hello.expert_bytes < 0:
        return "hello: term and expert_bytes must not be negative"
    return ""


def same_group(hello: Hello, first: Hello) -> str:
    """Return in what `hello` differs from the group's first `Hello`; empty if it belongs to it."""
    for name in (
        "ranks",
        "layers",
        "experts",
        "slots_per_rank",
        "layout_digest",
        "dispatch",
        "counts",
        "weighted",
    ):
        mine, theirs = getattr(hello, name), getattr(first, name)
        if mine != theirs:
            return (
                f"hello: rank {hello.rank} has {name} {mine!r}, rank {first.rank} of the same "
                f"group has {theirs!r}; all ranks of a group must run the same model and release"
            )
    return ""
