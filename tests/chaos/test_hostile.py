"""Frames that no worker sends, thrown at the live daemon's socket while epochs go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
import zmq

from eplbd.core import messages as m
from eplbd.wire.messages import AGENT, LEADER
from tests.chaos.lab import TEST_S, Lab
from tests.chaos.rules import Moment, says
from tests.chaos.served import LINE_S
from tests.chaos.waiting import until
from tests.hellos import hello

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]

Frames = Sequence[bytes]
LIMIT_BYTES = 2**20


def _header(tag: str, body: object, arrays: object = ()) -> bytes:
    return msgspec.msgpack.encode({"tag": tag, "seq": 1, "body": body, "arrays": arrays})


HEAT = {"epoch": 1, "first_forward": 1, "phase": "all"}
ROW = [b"\xff" * 8, b"\0" * 4, b"\0"]


def _heat(dtype: str, shape: Sequence[int], counts: bytes) -> Frames:
    arrays = [[dtype, shape], ["int64", [1]], ["int32", [1]], ["bool", [1]]]
    return [_header("heat", HEAT, arrays), counts, *ROW]


def _hello(**said: Any) -> Frames:  # noqa: ANN401 - any field of Hello
    said = {"group": "chaos", "incarnation": "0", "ranks": 3, "slots_per_rank": 4} | said
    return _frames(hello(**said))


def _frames(message: m.FromAgent) -> Frames:
    return [bytes(frame) for frame in AGENT.encode(message, 1)]


REFUSED: dict[str, Frames] = {
    "nothing": [b""],
    "noise": [bytes(range(256))],
    "truncated": [_frames(m.Pulse(1))[0][:-3]],
    "unknown tag": [_header("sudo", {})],
    "a leader's word": [bytes(frame) for frame in LEADER.encode(m.Beat(1), 1)],
    "a negative count": [_header("pulse", {"forward": -1})],
    "a time that is none": [_header("pulse", {"forward": 1, "gap_s": float("nan")})],
    "floats for counts": _heat("float32", [1, 2, 4], b"\xff" * 32),
    "objects for counts": _heat("object", [1, 2, 4], b"\x80" * 64),
    "a shape that lies": _heat("int32", [2**31, 2**31, 4], b"\0" * 32),
    "frames too many": [*_heat("int32", [1, 2, 4], b"\0" * 32), b"", b""],
    "frames by the thousand": [_header("pulse", {"forward": 1}), *[b"x"] * 5_000],
    "a header without end": [b"\x81" * 70_000],
}
"""What cannot be decoded: each from a peer of its own, logged with that peer and a reason."""

UNWELCOME: dict[str, Frames] = {
    "has restarted since": _hello(),
    "upgrade": _hello(group="new", wire=99, wire_min=98),
    "expected 1..": _hello(group="vast", layers=2**40),
    "do not fit": _hello(group="tight", experts=4_000),
}
"""Hellos that no group takes, by a word of the reason."""

STRANGE: tuple[Frames, ...] = (
    _heat("int32", [1, 2, 4], b"\xff\xff\xff\x7f" * 8),
    _frames(m.Staged(1, 1)),
    _frames(m.Committed(1, 1, "0" * 16, 1)),
    _frames(m.Nack(1, 1, "give up", lane_broken=True)),
    _frames(m.Bye("everybody leaves")),
)
"""Well said, by nobody who has a session: answered with `Greet`, whatever it is."""


class Hostile:
    """Connections to the daemon itself, past the relay."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._dealers: list[zmq.Socket[bytes]] = []

    def throw(self, identity: bytes, *messages: Frames) -> zmq.Socket[bytes]:
        """Say this, as `identity`; the connection stays."""
        dealer = self._context.socket(zmq.DEALER)
        self._dealers.append(dealer)
        dealer.setsockopt(zmq.IDENTITY, identity)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, 10_000)
        dealer.connect(self._endpoint)
        for frames in messages:
            dealer.send_multipart(list(frames))
        return dealer

    def close(self) -> None:
        """Drop all connections."""
        for dealer in self._dealers:
            dealer.close()
        self._context.destroy(linger=0)


@pytest.fixture
def hostile(lab: Lab) -> Iterator[Callable[[], Hostile]]:
    """Makes one for the daemon that there is then."""
    with contextlib.ExitStack() as stack:

        def made() -> Hostile:
            enemy = Hostile(lab.daemon.socket)
            stack.callback(enemy.close)
            return enemy

        yield made


def _undisturbed(lab: Lab, mark: int) -> None:
    """No epoch was given up and no rank lost since then."""
    assert not any(lab.daemon.since(mark, "epoch ended", outcome="aborted")), lab.daemon.tail()
    assert not any(lab.daemon.since(mark, "rank lost")), lab.daemon.tail()
    assert not any(lab.daemon.since(mark, "placement frozen")), lab.daemon.tail()


def test_frames_that_are_no_messages(lab: Lab, hostile: Callable[[], Hostile]) -> None:
    """All at once, at the moment when all ranks are armed."""
    with lab.scenario("hostile frames"):
        enemy, mark = hostile(), lab.daemon.mark()
        armed = Moment(says(m.Armed), lambda: None, nth=3, deaf=False)
        with lab.at(armed):
            for name, frames in REFUSED.items():
                enemy.throw(name.encode(), frames, frames)
        for name in REFUSED:
            refused = lab.daemon.line("message refused", mark=mark, peer=name.encode().hex())
            assert refused["reason"]
            again = list(lab.daemon.since(mark, "message refused", peer=refused["peer"]))
            assert len(again) == 1, "a peer's first offence is logged, the others are counted"
        epoch = getattr(armed.message, "epoch", 0)
        assert lab.daemon.line("epoch ended", mark=mark, epoch=epoch)["outcome"] == "settled"
        _undisturbed(lab, mark)


def test_messages_out_of_nowhere(lab: Lab, hostile: Callable[[], Hostile]) -> None:
    with lab.scenario("hostile messages"):
        enemy, mark = hostile(), lab.daemon.mark()
        stranger = enemy.throw(b"stranger", *STRANGE)
        for _ in STRANGE:
            assert isinstance(LEADER.decode(stranger.recv_multipart())[1], m.Greet)
        for number, (words, frames) in enumerate(UNWELCOME.items()):
            peer = enemy.throw(b"unwelcome%d" % number, frames)
            refusal = LEADER.decode(peer.recv_multipart())[1]
            assert isinstance(refusal, m.Refused)
            assert words in refusal.reason
        life = lab.group.proxy.identity(1).split(b".")[1].decode()
        peer = enemy.throw(b"odd one out", _hello(incarnation=life, rank=1, layers=3))
        refusal = LEADER.decode(peer.recv_multipart())[1]
        assert isinstance(refusal, m.Refused)
        assert "must run the same model" in refusal.reason
        until(
            lambda: len(list(lab.daemon.since(mark, "worker refused"))) == len(UNWELCOME) + 1,
            LINE_S,
            lambda: f"each refusal is logged\n{lab.daemon.tail()}",
        )
        _undisturbed(lab, mark)


def test_a_frame_larger_than_is_taken(lab: Lab, hostile: Callable[[], Hostile]) -> None:
    """Its sender is cut off before the frame is there; nobody else notices."""
    with lab.scenario("oversized frames"):
        lab.daemon.kill()
        lab.configure(session__max_message_bytes=LIMIT_BYTES)
        lab.daemon.start()
        lab.settles_further()
        enemy, mark = hostile(), lab.daemon.mark()
        for number in range(8):
            enemy.throw(b"large%d" % number, [b"\0" * (LIMIT_BYTES + 1)] * 4)
        small = enemy.throw(b"small", _frames(m.Pulse(1)))
        assert isinstance(LEADER.decode(small.recv_multipart())[1], m.Greet)
        lab.settles_further()
        _undisturbed(lab, mark)
        lab.configure()


def test_an_identity_is_stolen(lab: Lab, hostile: Callable[[], Hostile]) -> None:
    """It is an address: who takes it gets a rank's orders, not its say, until the rank is back."""
    with lab.scenario("stolen identity"):
        enemy, mark = hostile(), lab.daemon.mark()
        stolen = lab.group.proxy.identity(1)
        enemy.throw(stolen, *REFUSED.values())
        refused = lab.daemon.line("message refused", mark=mark, peer=stolen.hex())
        assert refused["reason"]
        enemy.close()
        assert not any(lab.daemon.since(mark, "placement frozen"))


def test_a_liar_claims_to_be_a_younger_life(lab: Lab, hostile: Callable[[], Hostile]) -> None:
    """It gets the group from the ranks and nothing from their maps; a restart ends that."""
    with lab.scenario("a false life of the group"):
        enemy, mark = hostile(), lab.daemon.mark()
        enemy.throw(b"liar", _hello(incarnation="9" * 20))
        assert lab.daemon.line("group restarted", mark=mark)["level"] == "warning"
        told = lab.daemon.line("worker refused", mark=mark)
        assert "has restarted since" in told["reason"]
        before = lab.group.until(
            lambda now: all(r.standing == "idle" and not r.connected for r in now),
            "the ranks end what was under way",
        )
        enemy.close()
        lab.group.until(lambda now: now[0].forward > before[0].forward + 40, "they serve on")
        lab.daemon.kill()
