"""What a worker and the run that started it tell each other: JSON, one message a line.

Owns the messages. It must not know torch, processes or what is made of the figures.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec

from eplbd.core.messages import Dispatch
from eplbd.demo.shape import Shape


class Assignment(msgspec.Struct, frozen=True, tag=True):
    """First line to a worker: all it has to know but the port of the store.

    socket: endpoint of the daemon. topic_steps: forwards of one topic, or trace window. trace: path
    of a recorded one, empty where routing is the gates'. experts_per_rank: staging buffers.
    """

    rank: int
    shape: Shape
    dispatch: Dispatch
    socket: str
    seed: int
    topic_steps: int
    trace: str
    experts_per_rank: int


class Meet(msgspec.Struct, frozen=True, tag=True):
    """Second line: the port at which rank 0 serves the group's store; 0 to rank 0 itself."""

    port: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To rank 0: let all ranks stop after the same step, soon."""


class Break(msgspec.Struct, frozen=True, tag=True):
    """Make one entry of this rank's maps wrong, before its next step."""


Order: TypeAlias = Assignment | Meet | Stop | Break
AnyOrder = TypeVar("AnyOrder", bound=Order)


class Serving(msgspec.Struct, frozen=True, tag=True):
    """Rank 0 serves the group's store at this port."""

    port: int


class Attached(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded and the agent runs; steps follow."""

    rank: int


class Steps(msgspec.Struct, frozen=True, tag=True):
    """Consecutive steps of one rank; every list has one item per step.

    first: number of the first one, from 0. topics: what each step's traffic is called. staging:
    whether rounds were under way beside the live forward. committed: whether it began with a flip.
    The rest is `StepTaken`'s.
    """

    rank: int
    first: int
    topics: list[str]
    identical: list[bool]
    staging: list[bool]
    committed: list[bool]
    live_s: list[float]
    twin_s: list[float]
    hook_s: list[float]
    live_load: list[list[int]]
    twin_load: list[list[int]]


class Broke(msgspec.Struct, frozen=True, tag=True):
    """An entry was made wrong before step `step`."""

    rank: int
    step: int
    layer: int
    expert: int


class Left(msgspec.Struct, frozen=True, tag=True):
    """All is over on this rank. steps: that it took. dropped: messages that found no daemon."""

    rank: int
    steps: int
    dropped: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The rank cannot go on. fault: one line. expected: whether it was raised on purpose."""

    rank: int
    fault: str
    expected: bool


Report: TypeAlias = Serving | Attached | Steps | Broke | Left | Failed

ORDERS: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
REPORTS: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
_ENCODER = msgspec.json.Encoder()


def line(message: Order | Report) -> bytes:
    """A message as it travels."""
    return _ENCODER.encode(message) + b"\n"
