"""Whatever arrives, the decoder answers with a message or with the frame that is wrong."""

from __future__ import annotations

import random
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.core import messages as m
from eplbd.errors import RemoteProtocolError
from eplbd.wire.codec import Codec
from eplbd.wire.limits import MAX_HEADER_BYTES, MAX_MESSAGE_BYTES
from eplbd.wire.messages import AGENT, LEADER
from tests.wire.strategies import ALL, assert_same, codec_of, example

MUTATIONS = 400  # per message


def _frames(tag: str) -> list[bytes]:
    return [bytes(frame) for frame in codec_of(tag).encode(example(ALL[tag]), 7)]


def _header(tag: str, body: object, arrays: object = None, seq: object = 1) -> bytes:
    header = {"tag": tag, "seq": seq, "body": body}
    return msgspec.msgpack.encode(header if arrays is None else {**header, "arrays": arrays})


def _outcome(codec: Codec[Any], frames: Sequence[bytes]) -> Any:  # noqa: ANN401 - any message
    """The decoded message, None where the peer was told off; any other exception is the bug."""
    try:
        return codec.decode(frames)[1]
    except RemoteProtocolError:
        return None


@pytest.mark.parametrize("tag", sorted(ALL))
def test_truncated_at_every_byte_of_every_frame(tag: str) -> None:
    whole = _frames(tag)
    for index, frame in enumerate(whole):
        for cut in range(len(frame)):
            frames = [*whole[:index], frame[:cut], *whole[index + 1 :]]
            with pytest.raises(RemoteProtocolError, match=f"^frame {index}"):
                codec_of(tag).decode(frames)


@pytest.mark.parametrize("tag", sorted(ALL))
def test_one_frame_more_or_less(tag: str) -> None:
    whole = _frames(tag)
    with pytest.raises(RemoteProtocolError, match="array frames"):
        codec_of(tag).decode([*whole, b""])
    with pytest.raises(RemoteProtocolError, match=r"array frames|no frame at all"):
        codec_of(tag).decode(whole[:-1])


@pytest.mark.parametrize("tag", sorted(ALL))
def test_random_mutations_decode_or_are_refused(tag: str) -> None:
    """And what is taken can be said again: the decoder lets nothing in that the encoder refuses."""
    codec, whole = codec_of(tag), _frames(tag)
    chance = random.Random(tag)
    for _ in range(MUTATIONS):
        frames = [bytearray(frame) for frame in whole]
        for _ in range(chance.randint(1, 4)):
            # Every array octet is lawful somewhere; the header is where the grammar is.
            frame = frames[0] if chance.random() < 0.8 else chance.choice(frames)
            place = chance.randrange(len(frame))
            match chance.randrange(4):
                case 0:
                    frame[place] ^= 1 << chance.randrange(8)
                case 1:
                    frame[place] = chance.randrange(256)
                case 2:
                    frame.insert(place, chance.randrange(256))
                case _ if len(frame) > 1:
                    del frame[place]
        message = _outcome(codec, [bytes(frame) for frame in frames])
        if message is not None:
            again = [bytes(frame) for frame in codec.encode(message, 7)]
            assert_same(codec.decode(again)[1], message)


@given(frames=st.lists(st.binary(max_size=64), max_size=8))
@settings(max_examples=500, deadline=None)
def test_noise_is_refused(frames: list[bytes]) -> None:
    assert _outcome(AGENT, frames) is None
    assert _outcome(LEADER, frames) is None


def _said(words: str) -> str:
    """A pattern of these very words; an ellipsis stands for any."""
    return ".*".join(re.escape(part) for part in words.split("…"))


BEAT = {"term": 1}
PULSE = {"forward": 1}
HEAT_BODY = {"epoch": 0, "first_forward": 0, "phase": "all"}
HEAT_ARRAYS = [["int32", [1, 1, 1]], ["int64", [1]], ["int32", [1]], ["bool", [1]]]
HEAT_FRAMES = [b"\0" * 4, b"\0" * 8, b"\0" * 4, b"\0"]


def _heat(index: int, dtype: object = None, shape: object = None, raw: bytes | None = None) -> Any:  # noqa: ANN401 - frames
    arrays: list[Any] = [list(declared) for declared in HEAT_ARRAYS]
    frames = list(HEAT_FRAMES)
    arrays[index][0] = arrays[index][0] if dtype is None else dtype
    arrays[index][1] = arrays[index][1] if shape is None else shape
    frames[index] = frames[index] if raw is None else raw
    return [_header("heat", HEAT_BODY, arrays), *frames]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "frame 0: expected a header, got no frame at all"),
        ([b""], "frame 0: header: Input data was truncated"),
        ([b"\xc1"], "frame 0: header: MessagePack data is malformed"),
        ([b"GET / HTTP/1.1\r\n\r\n"], "frame 0: header: Expected `object`, got `int`"),
        ([_header("pulse", PULSE) + b"\0"], "trailing characters"),
        ([_header("telemetry", {})], "expected a tag of this protocol, got 'telemetry'"),
        ([_header("t" * 33, {})], "`str` of length <= 32 - at `$.tag`"),
        ([_header("pulse", PULSE, seq=-1)], "Expected `int` >= 0 - at `$.seq`"),
        ([_header("pulse", PULSE, seq=2**63)], "at `$.seq`"),
        ([_header("pulse", PULSE, seq=1.5)], "got `float` - at `$.seq`"),
        ([_header("pulse", PULSE, seq=True)], "got `bool` - at `$.seq`"),
        ([_header("pulse", {})], "missing required field `forward`"),
        ([_header("pulse", [1])], "body of `pulse`: Expected `object`, got `array`"),
        ([_header("pulse", {"forward": -1})], "Expected `int` >= 0 - at `$.forward`"),
        ([_header("pulse", {"forward": "1"})], "Expected `int`, got `str`"),
        ([_header("pulse", {"forward": None})], "got `None` - at `$.forward`"),
        ([_header("pulse", PULSE | {"gap_s": float("nan")})], "`float` >= 0.0 - at `$.gap_s`"),
        ([_header("pulse", PULSE | {"gap_s": float("inf")})], "`float` <= … - at `$.gap_s`"),
        ([_header("pulse", PULSE | {"gap_s": -0.5})], "`float` >= 0.0 - at `$.gap_s`"),
        ([_header("bye", {"reason": "x" * 4097})], "`str` of length <= 4096 - at `$.reason`"),
        ([_header("bye", {"reason": b"bytes"})], "Expected `str`, got `bytes`"),
        ([_header("heat", HEAT_BODY | {"phase": "x" * 257}, HEAT_ARRAYS)], "at `$.phase`"),
        ([_header("decided", {"gate": "door"})], "Invalid enum value 'door' - at `$.gate`"),
        ([_header("pulse", PULSE, [["int32", [0]]]), b""], "expected `pulse` with 0 array frames"),
        ([_header("pulse", PULSE), b""], "got 0 declared and 1 sent"),
        ([_header("heat", HEAT_BODY), *HEAT_FRAMES], "got 0 declared and 4 sent"),
        ([_header("heat", HEAT_BODY, HEAT_ARRAYS), *HEAT_FRAMES[:3]], "got 4 declared and 3 sent"),
        ([_header("heat", HEAT_BODY, [["int32", [1]]] * 33)], "`array` of length <= 32"),
        ([_header("pulse", PULSE, 5)], "Expected `array`, got `int` - at `$.arrays`"),
        (_heat(0, dtype="int64"), "frame 1 (`heat.counts`): expected dtype int32, got 'int64'"),
        (_heat(0, dtype="object"), "expected dtype int32, got 'object'"),
        (_heat(0, dtype=">i4"), "expected dtype int32, got '>i4'"),
        (_heat(0, shape=[1, 1]), "frame 1 …: expected 3 dimensions, got shape [1, 1]"),
        (_heat(0, shape=[1] * 9), "`array` of length <= 8"),
        (_heat(0, shape=[-1, -1, 1]), "Expected `int` >= 0"),
        (_heat(0, shape=[1, 1, 2]), "expected the bytes of int32 [1, 1, 2], got 4 bytes"),
        (_heat(0, shape=[2**32, 2**32, 1]), "expected the bytes of int32"),
        (_heat(0, shape=[2**31, 2**31, 0], raw=b""), "expected the bytes of int32"),
        (_heat(0, raw=b"\0" * 5), "got 5 bytes"),
        (_heat(1, shape=[0]), "frame 2 (`heat.routed`)"),
        (_heat(3, raw=b"\2"), "frame 4 (`heat.dummy`): expected flags 0 and 1"),
    ],
)
def test_a_hostile_frame_is_named(frames: list[bytes], words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=_said(words)):
        AGENT.decode(frames)


def test_a_leader_is_trusted_no_further() -> None:
    with pytest.raises(RemoteProtocolError, match="frame 0"):
        LEADER.decode([_header("pulse", PULSE)])
    assert LEADER.decode([_header("beat", BEAT)]) == (1, m.Beat(1))


DEEP = b"\x91" * 60_000  # arrays in arrays
MAP_OF_FOUR_BILLION = b"\xdf\xff\xff\xff\xff"
LIST_OF_FOUR_BILLION = b"\xdd\xff\xff\xff\xff"
TAG = b"\xa3tag\xa5pulse\xa3seq\x01"


@pytest.mark.parametrize(
    "frame",
    [
        b"\x83" + TAG + b"\xa4body" + DEEP,
        b"\x84" + TAG + b"\xa4body\x80\xa6beyond" + DEEP,
        b"\x83" + TAG + b"\xa4body\x82\xa7forward\x01\xa6beyond" + DEEP,
        b"\x83" + TAG + b"\xa4body" + MAP_OF_FOUR_BILLION,
        b"\x83" + TAG + b"\xa4body\x82\xa7forward\x01\xa6beyond" + LIST_OF_FOUR_BILLION,
        b"\x84" + TAG + b"\xa4body\x80\xa6arrays" + LIST_OF_FOUR_BILLION,
        b"\x84" + TAG + b"\xa4body\x80\xa6arrays\x91\x92\xa5int32" + LIST_OF_FOUR_BILLION,
        b"\x82\xa3tag\xdb\xff\xff\xff\xff",
        b"\x83\xa3tag\xa1\xff\xa3seq\x01\xa4body\x80",
        b"\x83" + TAG + b"\xa4body\x81\xa6reason\xa1\xff",
        MAP_OF_FOUR_BILLION,
        DEEP,
    ],
)
def test_claims_of_size_and_depth_cost_nothing(frame: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RemoteProtocolError, match=r"^frame 0"):
        AGENT.decode([frame])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_384  # KiB


def test_an_over_long_header_is_not_even_parsed() -> None:
    with pytest.raises(RemoteProtocolError, match="frame 0: expected a header of at most"):
        AGENT.decode([b"\x80" * (MAX_HEADER_BYTES + 1)])


def test_an_over_long_message_is_not_even_parsed() -> None:
    with pytest.raises(RemoteProtocolError, match="expected a message of at most 67108864 bytes"):
        AGENT.decode([b"", b"\0" * (MAX_MESSAGE_BYTES + 1)])
    with pytest.raises(RemoteProtocolError, match="at most 10 bytes, got 11 in 2 frames"):
        AGENT.decode([b"\0" * 10, b"\0"], max_bytes=10)


@dataclass(frozen=True, slots=True, eq=False)
class Open:
    """A field whose form is left open."""

    anything: NDArray[np.generic] = field(metadata={"dtype": None, "ndim": None})


def test_an_open_field_still_has_an_allow_list() -> None:
    codec = Codec({"open": Open})
    with pytest.raises(RemoteProtocolError, match=r"expected dtype one of bool, .* got 'object'"):
        codec.decode([_header("open", {}, [["object", [1]]]), b"\0" * 8])
    assert codec.decode([_header("open", {}, [["int8", []]]), b"\1"])[1].anything == np.int8(1)
