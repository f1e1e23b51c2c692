"""The control protocol: what is asked arrives, and nothing else is taken for a question."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core import commands as c
from eplbd.errors import LocalProtocolError, RemoteProtocolError
from eplbd.wire import control as wire
from eplbd.wire.codec import Frame
from eplbd.wire.limits import MAX_MESSAGE_BYTES

ALICE = wire.Caller(wire.CONTROL_VERSION, "alice (uid 1000)", "a test")
SLOTS = np.arange(12, dtype=np.int32).reshape(1, 3, 4) % 6
REQUESTS: list[wire.Request] = [
    wire.Status(),
    c.Pause("a"),
    c.Freeze(),
    c.Resume(),
    c.Force(),
    wire.Rollback("monday", "a"),
    wire.Load("monday"),
    wire.Place("f.npz", 6, SLOTS),
    wire.Place("f.npz", 6, SLOTS, "a", np.ones(SLOTS.shape, np.float32)),
    c.Pin(3),
    c.Pin(3, 1, "a"),
    c.Unpin(3),
    c.Drain(2),
    c.Undrain(2),
    wire.Budget(7),
    wire.Budget(None, 1.5),
    wire.Promote("greedy"),
    c.DumpHeat(),
    c.Save("monday"),
]


def sent(frames: Sequence[Frame]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


def plain(message: object) -> object:
    return msgspec.to_builtins(message, enc_hook=lambda value: value.tolist())


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_what_is_asked_arrives(request_: wire.Request) -> None:
    caller, number, back = wire.asked(sent(wire.ask(ALICE, request_, 7)), MAX_MESSAGE_BYTES)
    assert (caller, number) == (ALICE, 7)
    assert type(back) is type(request_)
    assert plain(back) == plain(request_)


def test_every_request_is_tried_here() -> None:
    tried = {wire.REQUEST.tag(request) for request in REQUESTS}
    assert len(tried) == len({type(request) for request in REQUESTS}) == 16


@pytest.mark.parametrize(
    "reply",
    [
        wire.Done("it is so"),
        wire.Refused("it is not"),
        wire.Stated(np.frombuffer(b"{}", dtype=np.uint8)),
        wire.Dumped("a", "all", 8, 1, 9, np.ones((2, 3, 4), np.int32)),
    ],
    ids=lambda reply: type(reply).__name__,
)
def test_replies_arrive(reply: wire.Reply) -> None:
    number, back = wire.REPLY.decode(sent(wire.REPLY.encode(reply, 3)))
    assert number == 3
    assert plain(back) == plain(reply)


@pytest.mark.parametrize(
    ("caller", "words"),
    [
        (wire.Caller(2, "a", "b"), "use the eplbd of the same release"),
        (wire.Caller(wire.CONTROL_VERSION, "", "b"), "who: expected"),
        (wire.Caller(wire.CONTROL_VERSION, "a", "b" * 1025), "why: expected"),
        (wire.Caller(wire.CONTROL_VERSION, "a\nlevel=error", "b"), "printable"),
    ],
)
def test_a_caller_is_one_line_each_and_of_this_version(caller: wire.Caller, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        wire.ask(caller, c.Pause(), 1)
    frames = [msgspec.msgpack.encode(caller), *sent(wire.REQUEST.encode(c.Pause(), 1))]
    with pytest.raises(RemoteProtocolError, match=words):
        wire.asked(frames, MAX_MESSAGE_BYTES)


@given(st.lists(st.binary(max_size=64), max_size=4))
def test_noise_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.asked(frames, MAX_MESSAGE_BYTES)


@given(st.data())
def test_a_damaged_request_is_refused_or_understood(data: st.DataObject) -> None:
    request = data.draw(st.sampled_from(REQUESTS))
    frames = sent(wire.ask(ALICE, request, 1))
    which = data.draw(st.integers(0, len(frames) - 1))
    at = data.draw(st.integers(0, len(frames[which]) - 1))
    damaged = bytearray(frames[which])
    damaged[at] ^= data.draw(st.integers(1, 255))
    frames[which] = bytes(damaged)
    with contextlib.suppress(RemoteProtocolError):
        assert wire.asked(frames, MAX_MESSAGE_BYTES)[1] >= 0


@pytest.mark.parametrize("name", ["monday", "a.b-c_1", "9", "x" * 64])
def test_names_of_placements(name: str) -> None:
    assert wire.saved_name(name) == ""


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a b", "é", "x" * 65, "a/b", "previous"])
def test_what_is_no_name(name: str) -> None:
    assert wire.saved_name(name)
