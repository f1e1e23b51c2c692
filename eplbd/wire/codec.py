"""Frames to message and back.

Frame 0 is a msgpack `Header`; then one frame per array field of the message, in declared order.
Owns what is well-formed: types, sizes, dtypes, shapes. Must not know what any message means, nor
sockets.

A codec is built from a table, tag -> dataclass. The fields of the dataclass are the schema:

- a field with `dtype` in its metadata is an array and travels as a frame of its own; `ndim` stands
  beside it; either is None where any will do. One that has a default, None, may be left out, frame
  and all: it must be the last of its message, and a peer that does not know it refuses the frame;
- every other field travels in the header's body, by name. Unknown names are skipped and missing
  ones take the field's default, so that a newer peer may add fields;
- `int` is a count, 0 to 2**63 - 1; `float` is a number of seconds, finite and not negative; `str`
  is a name of at most `MAX_NAME_CHARS`, or a text of `MAX_TEXT_CHARS` where the field is called
  `reason` (`max_chars` in the metadata overrides both).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, Generic, TypeAlias, TypeVar, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd.errors import LocalProtocolError, RemoteProtocolError
from eplbd.wire.limits import (
    DTYPES,
    MAX_DIMENSIONS,
    MAX_FLOAT,
    MAX_HEADER_BYTES,
    MAX_INT,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
)

Frame: TypeAlias = bytes | memoryview
Array: TypeAlias = NDArray[np.generic]
M = TypeVar("M")

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=MAX_FLOAT)]
_Tag = Annotated[str, msgspec.Meta(max_length=32)]
_Shape = Annotated[tuple[_Count, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
_Declared = Annotated[list[tuple[_Tag, _Shape]], msgspec.Meta(max_length=32)]

# `dtype.name` is computed anew at every access (2 us); a look-up is not.
_NAME_OF = {np.dtype(name): name for name in DTYPES}
# Little-endian on the wire, whatever the host is.
_WIRE_DTYPE = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """Frame 0: which message, the sender's count of it, and which arrays follow."""

    tag: _Tag
    seq: _Count
    body: msgspec.Raw
    arrays: _Declared = []


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode


class Codec(Generic[M]):
    """Encodes and decodes the messages of one table; stateless, so threads may share it."""

    def __init__(self, table: Mapping[str, type[M]]) -> None:
        self._by_tag = {tag: _Form(tag, kind) for tag, kind in table.items()}
        self._by_kind = {form.kind: form for form in self._by_tag.values()}

    def tag(self, message: M) -> str:
        """What the message is called on the wire."""
        return self._by_kind[type(message)].tag

    def encode(
        self, message: M, seq: int, max_bytes: int = MAX_MESSAGE_BYTES
    ) -> list[bytes | memoryview]:
        """Frames of `message`, ready for a multipart send.

        Array frames are views: an array must not change until its frames have been sent or copied.

        Raises:
            LocalProtocolError: The message is not of the table, or no peer would take it.
        """
        form = self._by_kind.get(type(message))
        if form is None:
            raise LocalProtocolError(f"{type(message).__name__} is not a message of this protocol")
        frames = form.encode(message, seq)
        size = sum(len(frame) for frame in frames)
        if len(frames[0]) > MAX_HEADER_BYTES or size > max_bytes:
            raise LocalProtocolError(
                f"`{form.tag}` takes {size} bytes, {len(frames[0])} of them header; "
                f"at most {max_bytes} and {MAX_HEADER_BYTES} may be sent"
            )
        return frames

    def decode(self, frames: Sequence[Frame], max_bytes: int = MAX_MESSAGE_BYTES) -> tuple[int, M]:
        """`(seq, message)`. Arrays are read-only views of the frames, copied only where misaligned.

        Raises:
            RemoteProtocolError: Names the frame and what was expected of it. Nothing else is
                raised, whatever the frames hold.
        """
        header = _header(frames, max_bytes)
        form = self._by_tag.get(header.tag)
        if form is None:
            raise RemoteProtocolError(
                f"frame 0: expected a tag of this protocol, got {_shown(header.tag)}"
            )
        return header.seq, form.decode(header, frames)


class _Form(Generic[M]):
    """One message: its body's schema and its array fields, worked out once."""

    def __init__(self, tag: str, kind: type[M]) -> None:
        self.tag = tag
        self.kind = kind
        # Names that the message module imports for type checkers alone.
        hints = get_type_hints(kind, localns={"np": np, "NDArray": NDArray}, include_extras=True)
        declared = fields(kind)  # type: ignore[arg-type]  # tables hold dataclasses only
        self.arrays = [f for f in declared if "dtype" in f.metadata]
        self.required = sum(f.default is MISSING for f in self.arrays)
        if any(f.default is not MISSING for f in self.arrays[:-1]):
            raise LocalProtocolError(f"`{tag}`: only the last array may be left out")
        plain = [f for f in declared if "dtype" not in f.metadata]
        self.plain = [f.name for f in plain]
        self.texts = {f.name: _chars(f) for f in plain if _chars(f) > MAX_NAME_CHARS}
        schema = [_column(f, hints[f.name]) for f in plain]
        self.body = msgspec.defstruct(f"{kind.__name__}Body", schema, kw_only=True)
        self.decode_body = msgspec.msgpack.Decoder(self.body).decode

    def encode(self, message: M, seq: int) -> list[bytes | memoryview]:
        body = {name: getattr(message, name) for name in self.plain}
        given = [(f, getattr(message, f.name)) for f in self.arrays]
        if given and len(given) > self.required and given[-1][1] is None:
            del given[-1]
        arrays = [_published(self.tag, f, value) for f, value in given]
        declared = [(_NAME_OF[array.dtype], array.shape) for array in arrays]
        try:
            for name, cap in self.texts.items():
                body[name] = _cut(body[name], cap)
            # The receiver's own checks: a fault is found where it was made.
            msgspec.convert(body, self.body)
            packed = _encode(body)
            header = _encode(Header(self.tag, seq, msgspec.Raw(packed), declared))
            _decode_header(header)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            raise LocalProtocolError(f"`{self.tag}` cannot be sent: {error}") from error
        return [header, *(_bytes_of(array) for array in arrays)]

    def decode(self, header: Header, frames: Sequence[Frame]) -> M:
        try:
            body = self.decode_body(header.body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise RemoteProtocolError(f"frame 0: body of `{self.tag}`: {error}") from error
        here = len(header.arrays)
        if not self.required <= here <= len(self.arrays) or here != len(frames) - 1:
            raise RemoteProtocolError(
                f"frame 0: expected `{self.tag}` with {self._wanted} array frames, "
                f"got {here} declared and {len(frames) - 1} sent"
            )
        values = {name: getattr(body, name) for name in self.plain}
        for index, (field, (dtype, shape)) in enumerate(
            zip(self.arrays[:here], header.arrays, strict=True), start=1
        ):
            where = f"frame {index} (`{self.tag}.{field.name}`)"
            values[field.name] = _array(where, field, dtype, shape, frames[index])
        return self.kind(**values)

    @property
    def _wanted(self) -> str:
        return " or ".join(map(str, range(self.required, len(self.arrays) + 1)))


def _header(frames: Sequence[Frame], max_bytes: int) -> Header:
    if not frames:
        raise RemoteProtocolError("frame 0: expected a header, got no frame at all")
    size = sum(_size(frame) for frame in frames)
    if size > max_bytes:
        raise RemoteProtocolError(
            f"expected a message of at most {max_bytes} bytes, got {size} in {len(frames)} frames"
        )
    if (length := _size(frames[0])) > MAX_HEADER_BYTES:
        raise RemoteProtocolError(
            f"frame 0: expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}"
        )
    try:
        return _decode_header(frames[0])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"frame 0: header: {error}") from error


def _array(
    where: str, field: Field[Any], dtype: str, shape: tuple[int, ...], frame: Frame
) -> Array:
    expected = field.metadata["dtype"]
    if dtype != expected if expected is not None else dtype not in _WIRE_DTYPE:
        wanted = expected or f"one of {', '.join(DTYPES)}"
        raise RemoteProtocolError(f"{where}: expected dtype {wanted}, got {_shown(dtype)}")
    ndim = field.metadata["ndim"]
    if ndim is not None and len(shape) != ndim:
        raise RemoteProtocolError(f"{where}: expected {ndim} dimensions, got shape {list(shape)}")
    wire = _WIRE_DTYPE[dtype]
    size = _size(frame)
    # An empty array has no bytes to hold its other dimensions to.
    extent = math.prod(max(length, 1) for length in shape) * wire.itemsize
    if math.prod(shape) * wire.itemsize != size or (not size and extent > MAX_MESSAGE_BYTES):
        raise RemoteProtocolError(
            f"{where}: expected the bytes of {dtype} {list(shape)}, got {size} bytes"
        )
    array: Array = np.frombuffer(frame, dtype=wire).reshape(shape)
    if wire.kind == "b" and size and array.view(np.uint8).max() > 1:
        raise RemoteProtocolError(f"{where}: expected flags 0 and 1, got another byte")
    if not array.flags.aligned:
        # Compiled policies are typed for aligned arrays; a transport may cut frames anywhere.
        array = array.copy()
    array.setflags(write=False)
    return array


def _published(tag: str, field: Field[Any], value: object) -> Array:
    expected, ndim = field.metadata["dtype"], field.metadata["ndim"]
    name = _NAME_OF.get(value.dtype) if isinstance(value, np.ndarray) else None
    if (
        not isinstance(value, np.ndarray)
        or name is None
        or name != (expected or name)
        or value.ndim != (value.ndim if ndim is None else ndim)
    ):
        raise LocalProtocolError(
            f"`{tag}.{field.name}`: expected an array of {expected or 'any number'} and "
            f"{'any' if ndim is None else ndim} dimensions, got {_described(value)}"
        )
    # Not `ascontiguousarray`, which makes one dimension of none.
    return np.asarray(value, order="C")


def _bytes_of(array: Array) -> bytes | memoryview:
    if not array.size:  # a memoryview cannot be cast where a dimension is zero
        return b""
    return array.astype(_WIRE_DTYPE[_NAME_OF[array.dtype]], copy=False).data.cast("B")


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} of shape {list(value.shape)}"
    return type(value).__name__


def _size(frame: Frame) -> int:
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)


def _shown(text: str) -> str:
    return repr(text[:32])


def _cut(text: str, cap: int) -> str:
    # An over-long error text must not become an error of its own.
    return text if len(text) <= cap else text[: cap - 1] + "…"


def _chars(field: Field[Any]) -> int:
    given: int = field.metadata.get(
        "max_chars", MAX_TEXT_CHARS if field.name == "reason" else MAX_NAME_CHARS
    )
    return given


def _column(field: Field[Any], hint: object) -> tuple[str, object, object]:
    """One field of a body's struct, with the bounds that its type stands for."""
    kind: object = hint
    if hint is int:
        kind = _Count
    elif hint is float:
        kind = _Seconds
    elif hint is str:
        kind = Annotated[str, msgspec.Meta(max_length=_chars(field))]
    default: object = msgspec.NODEFAULT
    if field.default is not MISSING:
        default = field.default
    elif field.default_factory is not MISSING:
        default = msgspec.field(default_factory=field.default_factory)
    return (field.name, kind, default)
