"""The control protocol: what an operator's program and a daemon say to each other.

Owns the tags, and what of a command travels. A request is the frames of `Caller`, one, and those of
a command; a reply is those of one message, and has the request's number. Who calls is stated by the
caller and recorded as stated: whether anybody may call at all is the socket's permissions'. Must
not know what a command does, nor sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd.core import commands as c
from eplbd.core.orders import PREVIOUS
from eplbd.errors import LocalProtocolError, RemoteProtocolError
from eplbd.wire.codec import Codec, Frame
from eplbd.wire.limits import MAX_NAME_CHARS, MAX_TEXT_CHARS

CONTROL_VERSION = 1

MAX_WHY_CHARS = 1024


class Caller(msgspec.Struct, frozen=True):
    """Who calls, and why; both as stated."""

    version: int
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Status:
    """How everything stands."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Go back to a saved placement; without a name to the one before the last rebalance."""

    name: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """Go to a saved placement."""

    name: str
    group: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Go to this placement: of a file that the caller may read, and the daemon perhaps not.

    slots, shares: `[layers, ranks, slots_per_rank]`; no shares where every split is even.
    """

    name: str
    experts: int
    slots: NDArray[np.int32] = field(metadata={"dtype": "int32", "ndim": 3})
    group: str = ""
    shares: NDArray[np.float32] | None = field(
        default=None, metadata={"dtype": "float32", "ndim": 3}
    )


@dataclass(frozen=True, slots=True)
class Budget:
    """Until the configuration is read again: what a rebalance may cost; None leaves it."""

    max_moves: int | None = None
    inflation_ceiling: float | None = None


@dataclass(frozen=True, slots=True)
class Promote:
    """Until the configuration is read again: let this policy be in charge."""

    policy: str


Request: TypeAlias = (
    c.Pause
    | c.Freeze
    | c.Resume
    | c.Force
    | c.Pin
    | c.Unpin
    | c.Drain
    | c.Undrain
    | c.DumpHeat
    | c.Save
    | Status
    | Rollback
    | Load
    | Place
    | Budget
    | Promote
)


@dataclass(frozen=True, slots=True)
class Done:
    """It was obeyed; what follows of it."""

    told: str = field(metadata={"max_chars": MAX_TEXT_CHARS})


@dataclass(frozen=True, slots=True)
class Refused:
    """It was not, and why."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Stated:
    """How everything stands: `document` is UTF-8 JSON, `[bytes]`; names may be added to it."""

    document: NDArray[np.uint8] = field(metadata={"dtype": "uint8", "ndim": 1})


@dataclass(frozen=True, slots=True, eq=False)
class Dumped:
    """Heat of a group: `[steps, layers, experts]`, oldest step first; topk 0 where unknown."""

    group: str
    phase: str
    topk: int
    first_forward: int
    last_forward: int
    heat: NDArray[np.int32] = field(metadata={"dtype": "int32", "ndim": 3})


Reply: TypeAlias = Done | Refused | Stated | Dumped

REQUEST: Codec[Request] = Codec(
    {
        "status": Status,
        "pause": c.Pause,
        "freeze": c.Freeze,
        "resume": c.Resume,
        "force": c.Force,
        "rollback": Rollback,
        "load": Load,
        "place": Place,
        "pin": c.Pin,
        "unpin": c.Unpin,
        "drain": c.Drain,
        "undrain": c.Undrain,
        "budget": Budget,
        "promote": Promote,
        "heat": c.DumpHeat,
        "save": c.Save,
    }
)
REPLY: Codec[Reply] = Codec({"done": Done, "refused": Refused, "stated": Stated, "dumped": Dumped})

_encode = msgspec.msgpack.Encoder().encode
_caller = msgspec.msgpack.Decoder(Caller).decode


def ask(caller: Caller, request: Request, number: int) -> list[bytes | memoryview]:
    """Frames of a request. Raises LocalProtocolError for what no daemon would take."""
    try:
        _check(caller)
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from error
    return [_encode(caller), *REQUEST.encode(request, number)]


def asked(frames: Sequence[Frame], max_bytes: int) -> tuple[Caller, int, Request]:
    """Who asks, the request's number, and the request.

    Raises:
        RemoteProtocolError: Names what is wrong with it.
    """
    if len(frames) < 2:
        raise RemoteProtocolError("expected a caller and a command, got fewer frames")
    try:
        caller = _caller(frames[0])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"caller: {error}") from error
    _check(caller)
    return caller, *REQUEST.decode(frames[1:], max_bytes)


def _check(caller: Caller) -> None:
    if caller.version != CONTROL_VERSION:
        raise RemoteProtocolError(
            f"control version {caller.version}, this is {CONTROL_VERSION}: use the eplbd of the "
            "same release on both sides"
        )
    for name, text, most in (
        ("who", caller.who, MAX_NAME_CHARS),
        ("why", caller.why, MAX_WHY_CHARS),
    ):
        if not 1 <= len(text) <= most or not text.isprintable():
            raise RemoteProtocolError(f"{name}: expected 1 to {most} printable characters")


def saved_name(name: str) -> str:
    """Why a placement cannot be called so; empty if it can."""
    allowed = name.replace("-", "").replace("_", "").replace(".", "")
    if not (1 <= len(name) <= 64 and allowed.isascii() and allowed.isalnum() and name[0].isalnum()):
        return (
            f"name {name!r}: expected 1 to 64 letters, digits, dots, dashes and underscores, the "
            "first of them a letter or a digit"
        )
    if name == PREVIOUS:
        return f"{PREVIOUS!r} is what the daemon itself calls the one before the last rebalance"
    return ""
