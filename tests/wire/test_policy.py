"""The policy protocol: every message survives the framing, and no stream breaks the parser."""

import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.errors import RemoteProtocolError
from eplbd.wire.limits import MAX_HEADER_BYTES
from eplbd.wire.policy import (
    FROM_CHILD,
    MAX_ASK_BYTES,
    MAX_TEXT_CHARS,
    TO_CHILD,
    Answer,
    Ask,
    Fault,
    FromChild,
    List,
    Listed,
    Listing,
    Open,
    Ready,
    Refused,
    ToChild,
    enframe,
    unframe,
)

ARRAY = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
ASK = Ask(7, "all", 8, (0, 0, 1), None, 1 << 40, 2.5, 3, ARRAY, ARRAY + 1)
SHARES = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)


def stream(frames: list[bytes | memoryview]) -> bytes:
    return b"".join(bytes(piece) for piece in enframe(frames))


def parse(data: bytes, max_bytes: int = 1 << 20) -> list[bytes | memoryview] | None:
    """The frames of the message at the head of `data`, None where it stops short."""
    rest = memoryview(data)
    parser = unframe(max_bytes)
    need = next(parser)
    while len(rest) >= need:
        piece, rest = rest[:need], rest[need:]
        try:
            need = parser.send(piece)
        except StopIteration as end:
            frames: list[bytes | memoryview] = end.value
            return frames
    return None


def fields(message: object) -> Iterator[object]:
    for name in message.__dataclass_fields__:  # type: ignore[attr-defined]
        value = getattr(message, name)
        yield (value.dtype, value.tolist()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(
    "message",
    [
        Open("greedy", {"seed": 3, "name": "x", "deep": {"a": [1.5, True]}}, ("*",), ("a.py",)),
        List(("*",), ()),
        ASK,
        replace(ASK, weighted=True, shares=SHARES),
    ],
)
def test_what_the_parent_says_arrives(message: ToChild) -> None:
    frames = parse(stream(TO_CHILD.encode(message, 3)))
    assert frames is not None
    seq, decoded = TO_CHILD.decode(frames)
    assert seq == 3
    assert type(decoded) is type(message)
    assert [*fields(decoded)] == [*fields(message)]


@pytest.mark.parametrize(
    "message",
    [
        Ready("greedy", "eplbd-policies", "1.0", 0.5),
        Refused("policy.name", "unknown policy"),
        Answer(7, 0.25, ARRAY),
        Answer(7, 0.25, ARRAY, SHARES),
        Answer(7, 0.25, ARRAY, np.array(["no", "shares"]) == "no"),
        Answer(7, 0.25, np.zeros((0, 3))),
        Answer(7, 0.25, np.array(3.5)),
        Fault(7, "raised", 0.0, "Traceback"),
        Listing((Listed("hold", "eplbd", "1.0", policy="hold", api="1"),)),
    ],
)
def test_what_the_child_says_arrives(message: FromChild) -> None:
    frames = parse(stream(FROM_CHILD.encode(message, 1)))
    assert frames is not None
    decoded = FROM_CHILD.decode(frames)[1]
    assert type(decoded) is type(message)
    assert [*fields(decoded)] == [*fields(message)]


def test_the_longest_text_fits_the_header_in_any_script() -> None:
    text = "\N{PILE OF POO}" * MAX_TEXT_CHARS
    frames = FROM_CHILD.encode(Fault(1, "raised", 0.0, text), 1)
    decoded = FROM_CHILD.decode(frames)[1]
    assert isinstance(decoded, Fault)
    assert decoded.reason == text


def test_a_full_window_may_be_sent() -> None:
    window = np.lib.stride_tricks.as_strided(np.zeros(1, np.int32), (8192, 58, 256), (0, 0, 0))
    assert window.size * 4 + MAX_HEADER_BYTES < MAX_ASK_BYTES


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (struct.pack("<I", 0), "expected 1 to 8 frames, got 0"),
        (struct.pack("<I", 9), "expected 1 to 8 frames, got 9"),
        (b"\xff" * 4, "got 4294967295"),
        (struct.pack("<II", 1, MAX_HEADER_BYTES + 1), "of them header"),
        (struct.pack("<III", 2, 10, 1 << 31), "expected a message of at most 1048576 bytes"),
    ],
)
def test_lengths_are_judged_before_anything_is_read(head: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        parse(head)


@given(st.integers(0, 200))
def test_a_message_cut_short_is_waited_for(length: int) -> None:
    whole = stream(TO_CHILD.encode(ASK, 1))
    cut = whole[: min(length, len(whole) - 1)]
    assert parse(cut) is None


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    try:
        frames = parse(data, 4096)
        if frames is not None:
            FROM_CHILD.decode(frames)
    except RemoteProtocolError:
        pass


def test_arrays_of_objects_do_not_travel() -> None:
    header = FROM_CHILD.encode(Answer(1, 0.0, ARRAY), 1)[0]
    forged = bytes(header).replace(b"int32", b"objct")
    with pytest.raises(RemoteProtocolError, match="expected dtype"):
        FROM_CHILD.decode([forged, ARRAY.tobytes()])
