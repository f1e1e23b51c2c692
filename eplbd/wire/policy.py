"""The policy protocol: what the daemon and the policy child say to each other over two pipes.

Owns the messages, their caps and the framing of a byte stream. Must not know processes, pipes,
plugins or whether a placement is any good.

A message is the codec's frames behind their lengths, all numbers little-endian uint32: the number
of frames, the length of each frame, the frames. One question is under way at a time.
"""

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from eplbd.errors import RemoteProtocolError
from eplbd.wire.codec import Codec
from eplbd.wire.limits import MAX_HEADER_BYTES

MAX_ASK_BYTES = 1 << 30
"""Beyond the largest window that may be configured, 8,192 steps of 58 layers x 256 experts. The
default of 512 steps makes 30 MB."""

MAX_TEXT_CHARS = 12_288
"""A traceback, within the header's cap even where every character takes four bytes."""

_MAX_FRAMES = 8
_UINT32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Open:
    """The first message to the child: which policy, with what options, from which plugins.

    name_key, options_key: the settings that name it and its options, for refusals.
    """

    policy: str
    options: dict[str, object]
    enabled: tuple[str, ...]
    modules: tuple[str, ...]
    name_key: str = "policy.name"
    options_key: str = "policy.options"


@dataclass(frozen=True, slots=True)
class List:
    """The first message instead of `Open`: load every plugin and tell what it offers."""

    enabled: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A question.

    heat: `[steps, layers, experts]`. speed: of each rank; empty where all are equally fast.
    current, shares: `[layers, ranks, slots_per_rank]`; no shares where every split is even.
    """

    request: int
    phase: str
    experts: int
    node_of: tuple[int, ...]
    max_moves: int | None
    max_bytes: int | None
    deadline_s: float
    expert_bytes: int
    heat: NDArray[np.int32] = field(metadata={"dtype": "int32", "ndim": 3})
    current: NDArray[np.int32] = field(metadata={"dtype": "int32", "ndim": 3})
    weighted: bool = False
    speed: tuple[float, ...] = ()
    shares: NDArray[np.float32] | None = field(
        default=None, metadata={"dtype": "float32", "ndim": 3}
    )


@dataclass(frozen=True, slots=True)
class Ready:
    """The child loaded the policy and warmed it up. `policy` is its own name, not an alias."""

    policy: str
    distribution: str
    version: str
    start_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The child cannot serve. `path` is the setting at fault; empty where the plugin is."""

    path: str
    reason: str = field(metadata={"max_chars": MAX_TEXT_CHARS})


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A proposal as the policy made it: any numeric arrays; the core judges them."""

    request: int
    duration_s: float
    slots: NDArray[np.generic] = field(metadata={"dtype": None, "ndim": None})
    shares: NDArray[np.generic] | None = field(default=None, metadata={"dtype": None, "ndim": None})


@dataclass(frozen=True, slots=True)
class Fault:
    """No proposal. `outcome` is raised, invalid or memory; `reason` is the traceback."""

    request: int
    outcome: str
    duration_s: float
    reason: str = field(metadata={"max_chars": MAX_TEXT_CHARS})


@dataclass(frozen=True, slots=True)
class Listed:
    """One policy, or a plugin that offers none and why. Empty where there is no such thing."""

    plugin: str
    distribution: str
    version: str
    policy: str = ""
    api: str = ""
    needs: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Every policy of every plugin, and every plugin that offers none."""

    rows: tuple[Listed, ...]


ToChild: TypeAlias = Open | List | Ask
FromChild: TypeAlias = Ready | Refused | Answer | Fault | Listing

TO_CHILD: Codec[ToChild] = Codec({"open": Open, "list": List, "ask": Ask})
FROM_CHILD: Codec[FromChild] = Codec(
    {"ready": Ready, "refused": Refused, "answer": Answer, "fault": Fault, "listing": Listing}
)


def enframe(frames: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The pieces to write, in order, for one message's frames."""
    lengths = [frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames]
    return [struct.pack(f"<{1 + len(lengths)}I", len(lengths), *lengths), *frames]


def unframe(max_bytes: int) -> Generator[int, bytes | memoryview, list[bytes | memoryview]]:
    """Read one message: yields how many bytes it needs next and is sent exactly those.

    One parser for both ends, whether their pipes block or not.

    Raises:
        RemoteProtocolError: the lengths are not those of a message of at most `max_bytes`.
    """
    (count,) = _UINT32.unpack((yield _UINT32.size))
    if not 1 <= count <= _MAX_FRAMES:
        raise RemoteProtocolError(f"expected 1 to {_MAX_FRAMES} frames, got {count}")
    lengths = struct.unpack(f"<{count}I", (yield count * _UINT32.size))
    if lengths[0] > MAX_HEADER_BYTES or sum(lengths) > max_bytes:
        raise RemoteProtocolError(
            f"expected a message of at most {max_bytes} bytes, {MAX_HEADER_BYTES} of them header, "
            f"got frames of {lengths} bytes"
        )
    frames: list[bytes | memoryview] = []
    for length in lengths:
        frame = (yield length) if length else b""
        frames.append(frame)
    return frames
