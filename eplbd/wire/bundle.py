"""Many messages of many ranks in one multipart message between two daemons.

Frame 0 is a msgpack `_Envelope`: who counts, and which entries there are. The other frames are
those of the entries' own messages, each once: an array that several entries share travels once, and
so does a header that several have in common. Owns the envelope. Must not know sockets, keys, nor
what a message means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec

from eplbd.core.cluster import NODE, Entry, FromRelay, NodeHeat
from eplbd.core.messages import WIRE_VERSION, WIRE_VERSION_MIN, FromLeader
from eplbd.errors import LocalProtocolError, RemoteProtocolError
from eplbd.wire.codec import Codec, Frame
from eplbd.wire.limits import (
    MAX_BUNDLE_ENTRIES,
    MAX_BUNDLE_GROUPS,
    MAX_ENVELOPE_BYTES,
    MAX_INT,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARS,
    MAX_REFERRED_BYTES,
)
from eplbd.wire.messages import FROM_AGENT, FROM_LEADER

FROM_RELAY: dict[str, type[FromRelay]] = {**FROM_AGENT, "node-heat": NodeHeat}
"""What goes up. An agent that said `node-heat` would be refused by its own daemon."""

M = TypeVar("M", FromRelay, FromLeader)

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
_Rank = Annotated[int, msgspec.Meta(ge=NODE, le=1 << 16)]
_Group = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]
_Frames = Annotated[tuple[_Count, ...], msgspec.Meta(max_length=33)]
_Row: TypeAlias = tuple[_Count, _Rank, _Count, _Frames]


class VersionError(RemoteProtocolError):
    """The other daemon speaks no wire version that this one understands."""


class _Version(msgspec.Struct, frozen=True):
    """What every version's envelope has; read first, so that another one can be told."""

    wire: _Count


class _Envelope(msgspec.Struct, frozen=True):
    """Frame 0. entries: index into groups, rank, seq, and the frames of the message, header first.

    The frames are numbered from 1, as the parts of the multipart message are.
    """

    wire: _Count
    session: _Count
    seq: _Count
    groups: Annotated[list[_Group], msgspec.Meta(max_length=MAX_BUNDLE_GROUPS)]
    entries: Annotated[list[_Row], msgspec.Meta(max_length=MAX_BUNDLE_ENTRIES)]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Envelope).decode
_decode_version = msgspec.msgpack.Decoder(_Version).decode


@dataclass(frozen=True, slots=True)
class Bundle:
    """What came in one.

    session: drawn anew by each life of the daemon that sends. seq: its count of bundles to us, from
    1. refused: why entries were left out that this release does not understand.
    """

    session: int
    seq: int
    entries: tuple[Entry, ...]
    refused: tuple[str, ...] = ()


class BundleCodec(Generic[M]):
    """Encodes and decodes bundles of the messages of one table; stateless."""

    def __init__(self, table: Mapping[str, type[M]]) -> None:
        # Any: an entry holds a message of either way, the codec refuses those of the other.
        self._codec: Codec[Any] = Codec(table)

    def encode(
        self,
        session: int,
        seq: int,
        entries: Sequence[Entry] = (),
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> list[Frame]:
        """Frames of a bundle. Array frames are views, as those of `Codec.encode`.

        Raises:
            LocalProtocolError: A message is not of the table, or no peer would take the bundle.
        """
        frames: list[Frame] = [b""]
        places: dict[bytes | int, int] = {}
        groups: dict[str, int] = {}
        rows: list[_Row] = []
        said: dict[int, tuple[int, ...]] = {}
        for entry in entries:
            of_message = said.get(id(entry.message))
            if of_message is None:
                parts = self._codec.encode(entry.message, 0, max_bytes)
                of_message = said[id(entry.message)] = tuple(
                    _place(part, frames, places) for part in parts
                )
            group = groups.setdefault(entry.group, len(groups))
            rows.append((group, entry.rank, entry.seq, of_message))
        envelope = _Envelope(WIRE_VERSION, session, seq, [*groups], rows)
        frames[0] = _encode(envelope)
        if why := _excess(frames, max_bytes) or _unfit(envelope):
            raise LocalProtocolError(f"bundle of {len(rows)} entries cannot be sent: {why}")
        return frames

    def decode(self, frames: Sequence[Frame], max_bytes: int = MAX_MESSAGE_BYTES) -> Bundle:
        """The bundle in `frames`; arrays are read-only views of them.

        An entry whose message is refused is left out, and the rest taken: a daemon may relay
        workers that are newer than this one.

        Raises:
            VersionError: The sender's release speaks another version; says which side to upgrade.
            RemoteProtocolError: It is no bundle. Nothing else is raised, whatever the frames hold.
        """
        envelope = _envelope(frames, max_bytes)
        entries: list[Entry] = []
        refused: dict[str, None] = {}
        known: dict[tuple[int, ...], M | str] = {}
        for group, rank, seq, indices in envelope.entries:
            message = known.get(indices)
            if message is None:
                message = known[indices] = self._message([frames[i] for i in indices], max_bytes)
            if isinstance(message, str):
                refused[message] = None
            elif (rank == NODE) != isinstance(message, NodeHeat):
                refused[f"bundle: {type(message).__name__} of rank {rank}"] = None
            else:
                entries.append(Entry(envelope.groups[group], rank, seq, message))
        return Bundle(envelope.session, envelope.seq, tuple(entries), tuple(refused))

    def _message(self, frames: Sequence[Frame], max_bytes: int) -> M | str:
        try:
            message: M = self._codec.decode(frames, max_bytes)[1]
        except RemoteProtocolError as error:
            return str(error)
        return message


UP: BundleCodec[FromRelay] = BundleCodec(FROM_RELAY)
"""From a relay to the leader."""

DOWN: BundleCodec[FromLeader] = BundleCodec(FROM_LEADER)
"""From the leader to a relay."""


def _place(part: Frame, frames: list[Frame], places: dict[bytes | int, int]) -> int:
    """Where the part stands among the frames, added if it is new: by the buffer, or by value."""
    key = id(part.obj) if isinstance(part, memoryview) else part
    place = places.get(key)
    if place is None:
        place = places[key] = len(frames)
        frames.append(part)
    return place


def _envelope(frames: Sequence[Frame], max_bytes: int) -> _Envelope:
    if not frames:
        raise RemoteProtocolError("bundle: expected an envelope, got no frame at all")
    if why := _excess(frames, max_bytes):
        raise RemoteProtocolError(f"bundle: {why}")
    try:
        wire = _decode_version(frames[0]).wire
        if not WIRE_VERSION_MIN <= wire <= WIRE_VERSION:
            older = "the other" if wire < WIRE_VERSION_MIN else "this"
            raise VersionError(
                f"bundle: the other daemon speaks wire version {wire}, this one {WIRE_VERSION_MIN} "
                f"to {WIRE_VERSION}: upgrade {older} daemon"
            )
        envelope = _decode(frames[0])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"bundle: envelope: {error}") from error
    for group, _, _, indices in envelope.entries:
        if group >= len(envelope.groups) or not indices:
            raise RemoteProtocolError("bundle: an entry names no group of it, or has no frame")
        if min(indices) < 1 or max(indices) >= len(frames):
            raise RemoteProtocolError(
                f"bundle: an entry names frames {list(indices)}, there are 1 to {len(frames) - 1}"
            )
    referred = sum(_size(frames[i]) for row in envelope.entries for i in row[3])
    if referred > MAX_REFERRED_BYTES:
        raise RemoteProtocolError(
            f"bundle: entries refer to {referred} bytes, expected {MAX_REFERRED_BYTES} at most"
        )
    return envelope


def _excess(frames: Sequence[Frame], max_bytes: int) -> str:
    """What is too large about a bundle; empty if nothing is."""
    if (size := sum(map(_size, frames))) > max_bytes:
        return f"expected at most {max_bytes} bytes, got {size} in {len(frames)} frames"
    if (size := _size(frames[0])) > MAX_ENVELOPE_BYTES:
        return f"expected an envelope of at most {MAX_ENVELOPE_BYTES} bytes, got {size}"
    return ""


def _unfit(envelope: _Envelope) -> str:
    """What the receiver's own checks say of an envelope: a fault is found where it was made."""
    try:
        msgspec.convert(msgspec.structs.asdict(envelope), _Envelope)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _size(frame: Frame) -> int:
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)
