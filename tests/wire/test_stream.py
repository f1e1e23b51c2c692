"""What the event stream tells, byte for byte: every kind there and back, and what is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from eplbd.core.events import CycleEnded, EpochEnded, Note, ShadowScored, Stop
from eplbd.core.overview import overview
from eplbd.errors import LocalProtocolError, RemoteProtocolError
from eplbd.wire import stream
from tests.sim.world import World
from tests.top import pictures

KINDS = [stream.Snapshot, stream.Epoch, stream.Cycle, stream.Shadow, stream.Noted]


def there_and_back(event: stream.Told) -> stream.Told:
    number, back = stream.published([stream.topic(event), stream.number(7), stream.payload(event)])
    assert number == 7
    return back


def test_every_kind_comes_back_as_it_went() -> None:
    events = [*pictures.events(), pictures.snapshot(pictures.group())]
    assert {type(event) for event in events} == set(KINDS)
    for event in events:
        assert there_and_back(event) == event


def test_a_live_group_is_told_as_it_is_seen() -> None:
    world = World(seed=1)
    world.settle()
    assert world.node is not None
    seen = overview(world.node)
    told = there_and_back(stream.snapshot(seen, at_s=5.0, up_s=3.0, version="1", host="here"))
    assert isinstance(told, stream.Snapshot)
    (group,), (shown,) = seen.groups, told.groups
    assert (told.policy, told.host, told.at_s) == (seen.policy, "here", 5.0)
    assert shown.ranks == group.ranks
    assert shown.budget == group.budget
    assert shown.epochs == dict(group.totals.epochs)
    assert group.observed_par is not None
    assert group.rank_load is not None
    assert shown.observed_par == group.observed_par.tolist()
    percent = np.asarray(shown.rank_load)
    assert percent.shape == (group.layers, len(group.ranks))
    assert np.abs(percent / 100 - group.rank_load).max() <= 0.005
    for name in ("name", "epoch", "forward", "phase", "digest", "last_commit_age_s"):
        assert getattr(shown, name) == getattr(group, name)


@pytest.mark.parametrize(
    ("effect", "kind"),
    [
        (pictures.epoch(3), stream.Epoch),
        (pictures.cycle("applied"), stream.Cycle),
        (pictures.score(), stream.Shadow),
        (Note("info", "x", {"rank": 1}), stream.Noted),
        (Stop(), type(None)),
    ],
)
def test_lines_of_the_log_are_told_and_nothing_else(
    effect: EpochEnded | CycleEnded | ShadowScored | Note | Stop, kind: type
) -> None:
    assert type(stream.told(effect, 1.0)) is kind


def test_a_note_of_anything_can_be_told() -> None:
    """Its fields are whatever the log takes."""
    event = stream.told(Note("error", "x", {"a": {1}, "b": ValueError("c"), "d": b"e"}), 1.0)
    assert event is not None
    back = there_and_back(event)
    assert isinstance(back, stream.Noted)
    assert back.fields == {"a": [1], "b": "ValueError('c')", "d": b"e"}


def test_names_of_a_newer_daemon_are_skipped() -> None:
    body = msgspec.msgpack.decode(stream.payload(pictures.snapshot(pictures.group())))
    body["new"] = body["groups"][0]["new"] = body["groups"][0]["ranks"][0]["new"] = 1
    del body["alarms"]
    frames = [b"snapshot", stream.number(1), msgspec.msgpack.encode(body)]
    _, back = stream.published(frames)
    assert isinstance(back, stream.Snapshot)
    assert back.alarms == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80",
        msgspec.msgpack.encode({"type": "nothing", "at_s": 1.0}),
        msgspec.msgpack.encode({"type": "epoch", "at_s": 1.0}),
        msgspec.msgpack.encode({"type": "note", "at_s": "x", "level": "info", "event": "x"}),
        b"\x91" * 100_000,
    ],
)
def test_what_is_no_event_is_refused_with_the_fix(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="upgrade the older one"):
        stream.published([b"note", stream.number(1), body])


def test_what_is_no_frame_is_refused() -> None:
    event = stream.payload(pictures.snapshot())
    for frames in ([], [b""], [b"snapshot", event], [b"snapshot", b"1", event], [b""] * 4):
        with pytest.raises(RemoteProtocolError, match="expected the frames"):
            stream.published(frames)
    for frames in ([], [b"x", stream.number(1), event], [b"", b"1", event]):
        with pytest.raises(RemoteProtocolError, match="expected the frames"):
            stream.answered(frames)
    for frames in ([], [stream.number(1)], [b"", b"1"], [b"", stream.number(1), b""]):
        with pytest.raises(RemoteProtocolError, match="expected the frames"):
            stream.asked(frames)


def test_an_answer_ends() -> None:
    assert stream.answered([b"", stream.END, b""]) is None
    event = pictures.snapshot()
    assert stream.answered([b"", stream.number(3), stream.payload(event)]) == (3, event)
    assert stream.asked([b"", stream.number(3)]) == 3


def test_what_nobody_would_read_is_not_sent() -> None:
    event = stream.Noted(at_s=1.0, level="info", event="x" * (stream.MAX_EVENT_BYTES + 1))
    with pytest.raises(LocalProtocolError, match="too many to publish"):
        stream.payload(event)
