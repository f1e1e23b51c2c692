"""What becomes of messages that the socket does not take."""

from collections.abc import Sequence

import numpy as np

from eplbd.core import messages as m
from eplbd.core.placement import Placement
from eplbd.wire.messages import AGENT
from eplbd.worker.outbox import KEPT, Outbox
from tests.hellos import hello


class Wire:
    """A socket that takes so many messages, and no more."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.took: list[tuple[int, m.FromAgent]] = []
        self.outbox = Outbox(self.post)

    def post(self, frames: Sequence[bytes | memoryview]) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.took.append(AGENT.decode([bytes(frame) for frame in frames]))
        return True

    @property
    def said(self) -> list[m.FromAgent]:
        return [message for _, message in self.took]


def heat(steps: int = 2) -> m.HeatReport:
    return m.HeatReport(
        epoch=0,
        first_forward=1,
        phase="all",
        counts=np.zeros((steps, 1, 3), np.int32),
        routed=np.zeros(steps, np.int64),
        tokens=np.zeros(steps, np.int32),
        dummy=np.zeros(steps, np.bool_),
    )


def test_an_open_socket_takes_everything_in_order() -> None:
    wire = Wire()
    wire.outbox.say(m.Prepared(1, 1))
    wire.outbox.report(heat())
    wire.outbox.say(m.Staged(1, 1))
    assert [type(message) for message in wire.said] == [m.Prepared, m.HeatReport, m.Staged]
    assert [seq for seq, _ in wire.took] == [1, 2, 3]
    assert (wire.outbox.sent, wire.outbox.dropped, wire.outbox.lost_steps) == (3, 0, 0)


def test_control_waits_in_order_and_heat_is_lost_and_counted() -> None:
    wire = Wire(room=0)
    wire.outbox.say(m.Prepared(1, 1))
    wire.outbox.report(heat(16))
    wire.outbox.say(m.Staged(1, 1))
    wire.outbox.report(heat(3))
    assert wire.took == []
    assert wire.outbox.lost_steps == 19
    wire.room = 10
    assert wire.outbox.flush()
    assert wire.took == [(1, m.Prepared(1, 1)), (2, m.Staged(1, 1))]
    assert (wire.outbox.sent, wire.outbox.dropped) == (2, 0)


def test_what_was_kept_goes_before_what_is_new() -> None:
    wire = Wire(room=0)
    wire.outbox.say(m.Prepared(1, 1))
    wire.room = 10
    wire.outbox.report(heat())
    assert [type(message) for message in wire.said] == [m.Prepared, m.HeatReport]
    wire.room = 0
    wire.outbox.say(m.Staged(1, 1))
    wire.room = 10
    wire.outbox.say(m.Armed(1, 1, 1))
    assert wire.said[2:] == [m.Staged(1, 1), m.Armed(1, 1, 1)]
    assert wire.outbox.lost_steps == 0


def test_heat_does_not_take_the_room_that_control_waits_for() -> None:
    wire = Wire(room=0)
    wire.outbox.say(m.Prepared(1, 1))
    wire.outbox.say(m.Staged(1, 1))
    wire.room = 1
    wire.outbox.report(heat())
    wire.room = 1
    wire.outbox.report(heat())
    assert wire.said == [m.Prepared(1, 1), m.Staged(1, 1)]
    assert wire.outbox.lost_steps == 4


def test_the_oldest_is_given_up_and_counted() -> None:
    wire = Wire(room=0)
    for epoch in range(1, KEPT + 1):
        wire.outbox.say(m.Prepared(1, epoch))
    assert wire.outbox.dropped == 0
    for epoch in range(KEPT + 1, KEPT + 4):
        wire.outbox.say(m.Prepared(1, epoch))
    assert wire.outbox.dropped == 3
    wire.room = 1_000
    assert wire.outbox.flush()
    assert wire.said == [m.Prepared(1, epoch) for epoch in range(4, KEPT + 4)]


def test_a_sign_of_life_stands_for_the_one_before() -> None:
    """However long no daemon is there, the first thing it hears is one hello, and the newest."""
    wire = Wire(room=0)
    wire.outbox.say(m.Prepared(1, 1))
    for forward in range(10 * KEPT):
        wire.outbox.say(m.Pulse(forward))
    for term in range(10 * KEPT):
        wire.outbox.say(hello(term=term))
    wire.room = 10
    assert wire.outbox.flush()
    assert wire.said == [m.Prepared(1, 1), m.Pulse(10 * KEPT - 1), hello(term=10 * KEPT - 1)]
    assert wire.outbox.dropped == 0


def test_answers_never_stand_for_one_another() -> None:
    wire = Wire(room=0)
    stands = m.Stands(1, 0, "0" * 16, m.Standing.IDLE, 0, 5, 0, Placement.linear(1, 4, 2, 3).slots)
    for message in (m.Committed(1, 1, "0" * 16, 5), m.Committed(1, 2, "0" * 16, 9), stands, stands):
        wire.outbox.say(message)
    wire.room = 10
    wire.outbox.flush()
    assert [type(message) for message in wire.said] == [
        m.Committed,
        m.Committed,
        m.Stands,
        m.Stands,
    ]
