"""The target that knows every decoder: what a socket or a pipe hands over, a mouth per door.

Owns what must hold of a decoder: whatever the frames hold, it returns or raises RemoteProtocolError
and nothing else, and what it let in can be said again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eplbd.core.cluster import NODE, Entry, NodeHeat
from eplbd.core.events import EpochEnded, Note
from eplbd.core.messages import HeatReport
from eplbd.errors import RemoteProtocolError
from eplbd.wire import control, policy, stream
from eplbd.wire.bundle import DOWN, UP, BundleCodec
from eplbd.wire.codec import Codec
from eplbd.wire.limits import MAX_MESSAGE_BYTES
from eplbd.wire.messages import AGENT, FROM_AGENT, FROM_LEADER, LEADER
from tests.fuzz.dialogue import Said, read, write
from tests.wire.strategies import codec_of, example

Frames = Sequence[bytes]


def _taken_again(codec: Codec[Any]) -> Callable[[Frames], None]:
    """Decode; what was taken must pass the encoder, which checks more."""

    def decode(frames: Frames) -> None:
        seq, message = codec.decode(frames)
        codec.decode([bytes(frame) for frame in codec.encode(message, seq)])

    return decode


def _bundled(codec: BundleCodec[Any]) -> Callable[[Frames], None]:
    """Open a bundle; what was taken of it must fit into one."""

    def decode(frames: Frames) -> None:
        bundle = codec.decode(frames)
        again = codec.encode(bundle.session, bundle.seq, bundle.entries)
        assert len(codec.decode([bytes(frame) for frame in again]).entries) == len(bundle.entries)

    return decode


def _asked(frames: Frames) -> None:
    caller, number, request = control.asked(frames, MAX_MESSAGE_BYTES)
    control.ask(caller, request, number)


def _unframed(frames: Frames) -> None:
    """A pipe: the frames are cut anywhere, as its reads are."""
    pipe = b"".join(frames)
    parser = policy.unframe(MAX_MESSAGE_BYTES)
    wanted, place = next(parser), 0
    try:
        while place + wanted <= len(pipe):
            place += wanted
            wanted = parser.send(pipe[place - wanted : place])
    except StopIteration as found:
        policy.TO_CHILD.decode(found.value)


DOORS: tuple[Callable[[Frames], object], ...] = (
    _taken_again(AGENT),
    _taken_again(LEADER),
    _asked,
    _taken_again(control.REPLY),
    _taken_again(policy.TO_CHILD),
    _taken_again(policy.FROM_CHILD),
    _unframed,
    stream.published,
    stream.answered,
    stream.asked,
    _bundled(UP),
    _bundled(DOWN),
)
"""By mouth; those beyond are the first again."""


def take(data: bytes) -> int:
    """Knock on the doors; how many frames that took."""
    frames = 0
    for said in read(data):
        frames += max(1, len(said.frames))
        try:
            DOORS[said.mouth % len(DOORS)](said.frames)
        except RemoteProtocolError:
            continue
    return frames


def phrases() -> list[Said]:
    """Something that every door lets in, of every kind."""
    kinds = [
        *((0, tag, kind) for tag, kind in FROM_AGENT.items()),
        *((1, tag, kind) for tag, kind in FROM_LEADER.items()),
    ]
    return [
        *(
            Said(mouth, _frames(codec_of(tag).encode(example(kind), 7)))
            for mouth, tag, kind in kinds
        ),
        *_of_control(),
        *_of_policy(),
        *_of_stream(),
        *_of_bundles(),
    ]


def seeds() -> list[bytes]:
    """Inputs to begin with: each phrase by itself, and each door's together."""
    said = phrases()
    alone = [write([phrase]) for phrase in said]
    return alone + [write(of) for _, of in itertools.groupby(said, lambda phrase: phrase.mouth)]


def _frames(frames: Sequence[bytes | memoryview]) -> tuple[bytes, ...]:
    return tuple(bytes(frame) for frame in frames)


def _of_control() -> list[Said]:
    caller = control.Caller(control.CONTROL_VERSION, "somebody", "to see")
    row = np.zeros((1, 2, 2), dtype=np.int32)
    requests: list[control.Request] = [
        control.Status(),
        control.Rollback("kept"),
        control.Load("kept", "group"),
        control.Place("name", 4, row),
        control.Place("name", 4, row, "group", row.astype(np.float32)),
        control.Budget(max_moves=3, inflation_ceiling=1.1),
        control.Promote("greedy"),
    ]
    replies: list[control.Reply] = [
        control.Done("it is"),
        control.Refused("it is not"),
        control.Stated(np.frombuffer(b"{}", dtype=np.uint8)),
        control.Dumped("group", "all", 8, 1, 2, row),
    ]
    return [
        *(Said(2, _frames(control.ask(caller, request, 3))) for request in requests),
        *(Said(3, _frames(control.REPLY.encode(reply, 3))) for reply in replies),
    ]


def _of_policy() -> list[Said]:
    rows, heat = np.zeros((1, 2, 2), dtype=np.int32), np.ones((3, 1, 4), dtype=np.int32)
    given = policy.Ask(1, "all", 4, (0, 0), None, 9, 1.0, 1, heat, rows)
    to_child: list[policy.ToChild] = [
        policy.Open("random", {"seed": 1}, ("*",), ("module",)),
        policy.List((), ()),
        given,
    ]
    from_child: list[policy.FromChild] = [
        policy.Ready("random", "eplbd", "0", 0.1),
        policy.Refused("policy.name", "no"),
        policy.Answer(1, 0.1, rows, rows.astype(np.float64)),
        policy.Fault(1, "raised", 0.1, "Traceback"),
        policy.Listing((policy.Listed("plugin", "distribution", "0"),)),
    ]
    piped = policy.enframe(policy.TO_CHILD.encode(given, 1))
    return [
        *(Said(4, _frames(policy.TO_CHILD.encode(message, 1))) for message in to_child),
        *(Said(5, _frames(policy.FROM_CHILD.encode(message, 1))) for message in from_child),
        Said(6, (b"".join(piped),)),
    ]


def _of_stream() -> list[Said]:
    line = EpochEnded("g", 1, 1, "settled", "", 1, 1, 1, 1, 1, 9, 0.1, 0.1, 0.1, 0.0, "random")
    told = [stream.told(effect, 1.0) for effect in (line, Note("info", "words", {"group": "g"}))]
    bodies = [(stream.topic(event), stream.payload(event)) for event in told if event is not None]
    return [
        *(Said(7, (topic, stream.number(1), body)) for topic, body in bodies),
        *(Said(8, (b"", stream.number(1), body)) for _, body in bodies),
        Said(8, (b"", stream.END, b"")),
        Said(9, (b"", stream.number(5))),
    ]


def _of_bundles() -> list[Said]:
    heat = example(HeatReport)
    assert isinstance(heat, HeatReport)
    of_node = NodeHeat(
        heat.epoch,
        heat.first_forward,
        heat.phase,
        np.arange(1, dtype=np.int32),
        heat.counts[None].astype(np.uint8),
        heat.routed[None],
        heat.tokens[None],
        heat.dummy[None],
    )
    up = [Entry("group", rank, 1, example(FROM_AGENT[tag])) for rank, tag in enumerate(SHORT)]
    prepare = example(FROM_LEADER["prepare"])
    down = [Entry("group", rank, 0, prepare) for rank in range(2)]
    return [
        Said(10, _frames(UP.encode(1, 1, [*up, Entry("group", NODE, 0, of_node)]))),
        Said(10, _frames(UP.encode(1, 2, up))),
        Said(11, _frames(DOWN.encode(1, 1, down))),
        Said(11, _frames(DOWN.encode(1, 2))),
    ]


SHORT = ("hello", "pulse", "staged", "bye")
