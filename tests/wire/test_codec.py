"""What is sent arrives: round trips, golden bytes, views, evolution."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core import messages as m
from eplbd.errors import LocalProtocolError, RemoteProtocolError
from eplbd.wire.codec import Codec, Frame
from eplbd.wire.limits import MAX_HEADER_BYTES, MAX_INT, MAX_NAME_CHARS, MAX_TEXT_CHARS
from eplbd.wire.messages import AGENT, FROM_AGENT, FROM_LEADER, LEADER
from tests.wire.strategies import (
    ALL,
    any_message,
    assert_same,
    codec_of,
    example,
    may_be_left_out,
)

GOLDEN = Path(__file__).with_name("golden.txt")


def _sent(frames: Sequence[Frame]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


def _tag_of(message: m.Message) -> str:
    return next(tag for tag, kind in ALL.items() if kind is type(message))


# --- the laws -----------------------------------------------------------------------------------


@given(message=any_message(), seq=st.integers(0, MAX_INT))
@settings(max_examples=400, deadline=None)
def test_what_is_encoded_decodes_to_the_same(message: m.Message, seq: int) -> None:
    codec = codec_of(_tag_of(message))
    back_seq, back = codec.decode(_sent(codec.encode(message, seq)))
    assert back_seq == seq
    assert_same(back, message)


@given(message=any_message())
@settings(max_examples=100, deadline=None)
def test_encoding_is_a_function_of_the_message(message: m.Message) -> None:
    codec = codec_of(_tag_of(message))
    once = _sent(codec.encode(message, 1))
    assert once == _sent(codec.encode(message, 1))
    assert once == _sent(codec.encode(codec.decode(once)[1], 1))


def test_the_tables_hold_every_message_once() -> None:
    assert set(FROM_AGENT.values()) == set(get_args(m.FromAgent))
    assert set(FROM_LEADER.values()) == set(get_args(m.FromLeader))
    assert not FROM_AGENT.keys() & FROM_LEADER.keys()


# --- golden bytes -------------------------------------------------------------------------------


WHOLE = [tag for tag, kind in ALL.items() if any(may_be_left_out(f) for f in fields(kind))]


def _examples() -> Iterator[tuple[str, str, m.Message]]:
    """Name in the golden file, tag and message; a `+` is for the array that may be left out."""
    for tag, kind in ALL.items():
        yield tag, tag, example(kind)
        if tag in WHOLE:
            yield f"{tag}+", tag, example(kind, whole=True)


def _golden() -> dict[str, list[bytes]]:
    """`tag frame hex` per line; a frame of no bytes is a dash."""
    golden: dict[str, list[bytes]] = {}
    for line in GOLDEN.read_text().splitlines():
        tag, _, octets = line.split()
        golden.setdefault(tag, []).append(bytes.fromhex(octets.strip("-")))
    return golden


def test_golden_bytes_are_committed() -> None:
    """`EPLBD_UPDATE=1` rewrites them: then the wire has changed, and the version must."""
    lines = [
        f"{name} {index} {frame.hex() or '-'}"
        for name, tag, message in _examples()
        for index, frame in enumerate(_sent(codec_of(tag).encode(message, 7)))
    ]
    if os.environ.get("EPLBD_UPDATE"):
        GOLDEN.write_text("\n".join(lines) + "\n")
    assert GOLDEN.read_text().splitlines() == lines


@pytest.mark.parametrize(("name", "tag", "message"), [*_examples()])
def test_golden_bytes_decode(name: str, tag: str, message: m.Message) -> None:
    seq, found = codec_of(tag).decode(_golden()[name])
    assert seq == 7
    assert_same(found, message)


@pytest.mark.parametrize("tag", WHOLE)
def test_what_is_left_out_costs_no_byte(tag: str) -> None:
    """The array's frame and its declaration are all that it adds."""
    golden = _golden()
    bare, whole = golden[tag], golden[f"{tag}+"]
    assert whole[1:-1] == bare[1:]
    assert len(whole) == len(bare) + 1


def test_only_the_last_array_may_be_left_out() -> None:
    @dataclass(frozen=True)
    class Early:
        first: NDArray[np.int32] | None = field(
            default=None, metadata={"dtype": "int32", "ndim": 1}
        )
        last: NDArray[np.int32] | None = field(default=None, metadata={"dtype": "int32", "ndim": 1})

    with pytest.raises(LocalProtocolError, match="only the last array may be left out"):
        Codec({"early": Early})


# --- arrays -------------------------------------------------------------------------------------


def _heat(**changed: NDArray[np.generic]) -> m.HeatReport:
    arrays = {
        "counts": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
        "routed": np.arange(2, dtype=np.int64),
        "tokens": np.arange(2, dtype=np.int32),
        "dummy": np.array([True, False]),
    }
    return m.HeatReport(epoch=1, first_forward=2, phase="all", **{**arrays, **changed})  # type: ignore[arg-type]


def test_arrays_are_read_only_views_of_the_frames() -> None:
    frames = _sent(AGENT.encode(_heat(), 1))
    _, back = AGENT.decode(frames)
    assert isinstance(back, m.HeatReport)
    assert np.shares_memory(back.counts, np.frombuffer(frames[1], np.uint8))
    assert not back.counts.flags.writeable


def test_a_writable_frame_gives_a_read_only_array_too() -> None:
    frames = [memoryview(bytearray(frame)) for frame in _sent(AGENT.encode(_heat(), 1))]
    _, back = AGENT.decode(frames)
    assert isinstance(back, m.HeatReport)
    with pytest.raises(ValueError, match="read-only"):
        back.counts[0] = 1


def test_a_misaligned_frame_gives_an_aligned_array() -> None:
    frames: list[Frame] = [*_sent(AGENT.encode(_heat(), 1))]
    frames[1] = memoryview(b"." + bytes(frames[1]))[1:]
    _, back = AGENT.decode(frames)
    assert isinstance(back, m.HeatReport)
    assert back.counts.flags.aligned
    assert not back.counts.flags.writeable
    assert np.array_equal(back.counts, _heat().counts)


def test_encoding_copies_no_contiguous_array() -> None:
    heat = _heat()
    assert np.shares_memory(np.frombuffer(AGENT.encode(heat, 1)[1], np.uint8), heat.counts)


def test_a_strided_array_is_sent_in_order() -> None:
    heat = _heat(counts=np.arange(24, dtype=np.int32).reshape(4, 3, 2).T)
    _, back = AGENT.decode(_sent(AGENT.encode(heat, 1)))
    assert_same(back, heat)


# --- evolution ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Older:
    """A message as an older release knows it."""

    term: int


@dataclass(frozen=True, slots=True)
class Newer:
    """The same message, grown."""

    term: int
    reason: str = "none given"
    ranks: list[int] = field(default_factory=list)


OLDER = Codec({"x": Older})
NEWER = Codec({"x": Newer})


def test_an_older_reader_skips_a_new_field() -> None:
    assert OLDER.decode(_sent(NEWER.encode(Newer(3, "why", [1]), 1))) == (1, Older(3))


def test_a_newer_reader_fills_a_missing_field() -> None:
    assert NEWER.decode(_sent(OLDER.encode(Older(3), 1))) == (1, Newer(3, "none given", []))


def test_an_unknown_header_field_is_skipped() -> None:
    frame = msgspec.msgpack.encode({"tag": "x", "seq": 1, "body": {"term": 2}, "later": [1]})
    assert OLDER.decode([frame]) == (1, Older(2))


# --- open arrays: another codec of the same form -------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Whatever a guest answers: dtype and dimensions are for others to judge."""

    detail: str = field(metadata={"max_chars": 10_000})
    anything: NDArray[np.generic] = field(metadata={"dtype": None, "ndim": None})


ANSWERS = Codec({"answer": Answer})


@pytest.mark.parametrize(
    "array", [np.float32(3.5) * np.ones((2, 1, 1, 2)), np.array(3), np.zeros((0, 4), np.uint8)]
)
def test_an_open_array_field_takes_any_allowed_dtype(array: NDArray[np.generic]) -> None:
    _, back = ANSWERS.decode(_sent(ANSWERS.encode(Answer("d" * 10_000, array), 1)))
    assert back.anything.dtype == array.dtype
    assert back.anything.shape == array.shape
    assert np.array_equal(back.anything, array)


# --- our own faults -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (m.Beat(-1), "`beat` cannot be sent: Expected `int` >= 0"),
        (m.Beat(MAX_INT + 1), "Expected `int` <="),
        (m.Beat("1"), "Expected `int`, got `str`"),  # type: ignore[arg-type]
        (m.Pulse(1, float("nan")), "Expected `float` >= 0.0 - at `..forward_s`"),
        (m.Pulse(1, float("inf")), "Expected `float` <="),
        (m.Bye(None), "NoneType"),  # type: ignore[arg-type]
        (m.Bye("\ud800"), "surrogates not allowed"),
        (_heat(counts=np.zeros((1, 1, 1), np.int64)), "expected an array of int32 and 3"),
        (_heat(counts=np.zeros((1, 1), np.int32)), r"got int32 of shape \[1, 1\]"),
        (_heat(counts=np.zeros((1, 1, 1), ">i4")), "expected an array of int32"),
        (_heat(counts=[1]), "`heat.counts`: .* got list"),  # type: ignore[arg-type]
        (m.HeatReport(0, 0, "p" * (MAX_NAME_CHARS + 1), *([np.zeros(1)] * 4)), "float64"),  # type: ignore[arg-type]
    ],
)
def test_what_no_peer_would_take_is_not_sent(message: m.Message, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        codec_of(_tag_of(message)).encode(message, 1)


def test_an_agent_does_not_say_what_leaders_say() -> None:
    with pytest.raises(LocalProtocolError, match="Beat is not a message of this protocol"):
        AGENT.encode(m.Beat(1), 1)  # type: ignore[arg-type]


def test_a_negative_seq_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="seq"):
        LEADER.encode(m.Beat(1), -1)


def test_an_over_long_message_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match=r"`heat` takes .* at most 100 and"):
        AGENT.encode(_heat(), 1, max_bytes=100)


def test_an_over_long_header_is_not_sent() -> None:
    @dataclass(frozen=True, slots=True)
    class Wordy:
        words: str = field(metadata={"max_chars": MAX_HEADER_BYTES})

    codec = Codec({"wordy": Wordy})
    with pytest.raises(LocalProtocolError, match="of them header"):
        codec.encode(Wordy("w" * MAX_HEADER_BYTES), 1)


def test_an_over_long_reason_is_cut_and_says_so() -> None:
    _, back = AGENT.decode(_sent(AGENT.encode(m.Bye("x" * 5000), 1)))
    assert isinstance(back, m.Bye)
    assert len(back.reason) == MAX_TEXT_CHARS
    assert back.reason.endswith("x…")


def test_every_array_field_states_its_form() -> None:
    for kind in ALL.values():
        for declared in fields(kind):
            if "dtype" in declared.metadata:
                assert declared.metadata.keys() == {"dtype", "ndim"}


def test_only_the_right_side_may_say_it() -> None:
    with pytest.raises(RemoteProtocolError, match="frame 0: expected a tag of this protocol"):
        AGENT.decode(_sent(LEADER.encode(m.Beat(1), 1)))
