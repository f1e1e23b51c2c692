"""A relay by hand: what goes up and comes down, and what it says of its leader."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplbd.core import messages as m
from eplbd.core.cluster import NODE, Address, Entry, NodeHeat, Up
from eplbd.core.events import Note, Send
from eplbd.core.relay import HEAT_BYTES, Relay
from eplbd.core.settings import Settings
from eplbd.errors import RemoteProtocolError
from eplbd.wire.bundle import UP
from tests.hellos import hello as plain

LEADER, ELSEWHERE = Address("tcp://a:1", "key a"), Address("tcp://b:2", "key b")
SETTINGS = Settings()
SILENCE_S, INTERVAL_S = SETTINGS.session.silence_s, SETTINGS.cluster.interval_s
LAYERS, SLOTS = 2, 3


def hello(rank: int, incarnation: str = "1") -> m.Hello:
    shape = {"ranks": 8, "layers": LAYERS, "experts": 16, "slots_per_rank": SLOTS}
    return plain(rank=rank, incarnation=incarnation, **shape)


def relay(*ranks: int, linked: bool = True) -> Relay:
    made = Relay(hello(ranks[0]), LEADER, SETTINGS, now=0.0)
    for rank in ranks:
        made.hello(b"%d" % rank, 1, hello(rank))
    if linked:
        made.led()
    made.drain()
    return made


def report(first: int = 0, most: int = 9, *, phase: str = "decode", steps: int = 4) -> m.HeatReport:
    counts = np.full((steps, LAYERS, SLOTS), most, dtype=np.int32)
    routed = counts.sum(axis=(1, 2), dtype=np.int64)
    told = np.ones(steps, dtype=np.int32)
    return m.HeatReport(1, first, phase, counts, routed, told, np.zeros(steps, dtype=np.bool_))


def up(made: Relay) -> list[Entry]:
    """What went up, all to the leader."""
    sent = [effect for effect in made.drain() if isinstance(effect, Up)]
    assert {effect.leader for effect in sent} <= {made.leader}
    return [entry for effect in sent for entry in effect.entries]


def heat(made: Relay, *times: float) -> list[NodeHeat]:
    found = []
    for now in times:
        made.tick(now)
        found += [e.message for e in up(made) if isinstance(e.message, NodeHeat)]
    return found


def events(made: Relay) -> list[str]:
    return [effect.event for effect in made.drain() if isinstance(effect, Note)]


def test_control_goes_up_as_it_came_and_counts_no_heat() -> None:
    made = relay(3)
    made.heard(3, 2, m.Prepared(1, 1))
    made.heard(3, 3, report())
    made.heard(3, 5, m.Prepared(1, 2))
    sent = [(e.group, e.rank, e.seq, e.message) for e in up(made)]
    told = [("g", 3, 2, m.Prepared(1, 1)), ("g", 3, 4, m.Prepared(1, 2))]
    assert sent == told, "the gap before 5 is seen"
    made.hello(b"3", 1, hello(3))
    assert [e.seq for e in up(made)] == [1], "an agent counts anew in a new session"


def test_pulses_wait_for_something_to_travel_with() -> None:
    made = relay(3, 4)
    made.heard(3, 2, m.Pulse(1))
    made.heard(4, 2, m.Pulse(1))
    made.tick(INTERVAL_S / 2)
    assert up(made) == []
    made.tick(INTERVAL_S)
    assert [(e.rank, e.message) for e in up(made)] == [(3, m.Pulse(1)), (4, m.Pulse(1))]
    made.heard(3, 3, m.Pulse(2))
    made.heard(3, 4, m.Prepared(1, 1))
    assert [e.message for e in up(made)] == [m.Pulse(2), m.Prepared(1, 1)], "in order, at once"


def test_orders_come_down_to_whom_they_are_for() -> None:
    made = relay(3, 4)
    for rank in (3, 4, 5):
        made.order(rank, m.Beat(rank))
    assert made.drain() == [Send(b"3", m.Beat(3)), Send(b"4", m.Beat(4))]


def test_a_rank_that_comes_again_replaces_itself() -> None:
    made = relay(3)
    assert made.hello(b"3", 1, hello(3)) is None
    assert made.hello(b"new", 1, hello(3)) == b"3"
    made.drain()
    made.order(3, m.Beat(1))
    assert made.drain() == [Send(b"new", m.Beat(1))]


@pytest.mark.parametrize("linked", [True, False])
def test_a_lost_leader_is_told_once_and_when_it_is_found(linked: bool) -> None:
    made = relay(3, linked=linked)
    assert made.linked == linked
    for now in (0.5 * SILENCE_S, SILENCE_S):
        made.tick(now)
    assert events(made) == []
    for now in (1.1 * SILENCE_S, 2 * SILENCE_S, 9 * SILENCE_S):
        made.tick(now)
    assert events(made) == ["leader lost"]
    assert not made.linked
    assert ("silent" if linked else "not heard yet") in made.reason
    made.led()
    assert events(made) == ["leader found"]
    assert (made.linked, made.reason) == (True, "")
    made.tick(11 * SILENCE_S)
    assert events(made) == ["leader lost"]


def test_a_leader_that_moved_is_to_be_found_anew() -> None:
    made = relay(3)
    made.follow(ELSEWHERE)
    assert not made.linked
    made.drain()
    made.heard(3, 2, m.Prepared(1, 1))
    assert [effect.leader for effect in made.drain() if isinstance(effect, Up)] == [ELSEWHERE]


def test_it_gives_a_sign_of_life_where_its_ranks_give_none() -> None:
    made, beats = relay(3), 0
    for tenth in range(50):
        made.tick(tenth / 10)
        if tenth < 20:
            made.heard(3, tenth, m.Pulse(tenth))
        signs = [e for e in made.drain() if isinstance(e, Up) and not e.entries]
        assert not signs or tenth >= 20
        beats += len(signs)
    assert beats == pytest.approx(2.5 / SETTINGS.session.heartbeat_s, abs=1)


def test_heat_of_all_ranks_goes_up_as_one() -> None:
    made = relay(5, 3)
    made.heard(5, 2, report(most=300))
    made.heard(3, 2, report(most=7))
    (joined,) = heat(made, 0.05)
    assert joined.ranks.tolist() == [3, 5]
    assert joined.counts.dtype == np.uint16
    assert joined.counts[:, 0, 0, 0].tolist() == [7, 300]
    assert joined.routed[:, 0].tolist() == [7 * LAYERS * SLOTS, 300 * LAYERS * SLOTS]
    assert heat(made, 0.1, 9.9) == [], "once"


@pytest.mark.parametrize(("most", "kind"), [(255, np.uint8), (65535, np.uint16), (65536, np.int32)])
def test_heat_is_as_narrow_as_its_largest_count(most: int, kind: type[np.generic]) -> None:
    made = relay(3)
    made.heard(3, 2, report(most=most))
    (told,) = heat(made, 0.05)
    assert told.counts.dtype == kind
    assert told.counts.max() == most


def test_heat_waits_for_the_other_ranks_but_not_for_long() -> None:
    made = relay(3, 4)
    made.heard(3, 2, report())
    assert heat(made, 0.5 * INTERVAL_S) == []
    assert [h.ranks.tolist() for h in heat(made, 1.1 * INTERVAL_S)] == [[3]]


def test_only_like_is_joined() -> None:
    made = relay(3, 4)
    for rank, told in ((3, report(0)), (4, report(4)), (3, report(4, phase="prefill"))):
        made.heard(rank, 2, told)
    made.heard(4, 3, report(0, steps=2))
    assert len(heat(made, 0.05, 1.1 * INTERVAL_S)) == 4


def test_nobody_waits_for_a_rank_that_is_gone() -> None:
    made = relay(3, 4)
    made.tick(2 * SILENCE_S)
    made.led()
    made.heard(3, 2, report())
    assert made.ranks == (3,)
    made.drain()
    assert len(heat(made, 2 * SILENCE_S + 0.05)) == 1


def test_heat_is_for_a_leader_that_listens() -> None:
    """What would wait for another is nobody's any more, and keeps no memory."""
    made = relay(3, linked=False)
    made.heard(3, 2, report())
    assert heat(made, 0.05) == []
    made.led()
    assert heat(made, 0.1) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"counts": np.full((4, LAYERS, SLOTS), -1, dtype=np.int32)}, "negative"),
        ({"counts": np.ones((4, LAYERS, SLOTS + 1), dtype=np.int32)}, "shape"),
        ({"phase": "nap"}, "phase"),
    ],
)
def test_heat_that_cannot_be_booked_goes_no_further(changes: dict[str, object], why: str) -> None:
    made = relay(3, 4)
    with pytest.raises(RemoteProtocolError, match=f"rank 3: .*{why}"):
        made.heard(3, 2, replace(report(), **changes))  # type: ignore[arg-type]  # as named
    made.heard(4, 2, report())
    assert [h.ranks.tolist() for h in heat(made, 1.1 * INTERVAL_S)] == [[4]]


def test_what_is_held_back_is_bounded() -> None:
    made = relay(3, 4)
    each = report().counts.nbytes
    for first in range(HEAT_BYTES // each + 1):
        made.heard(3, first, report(first * 4))
    assert len(heat(made, 0.01)) == HEAT_BYTES // each + 1


def test_a_report_to_the_leader_is_bounded_too() -> None:
    """Counts of tokens sent have a column for every slot of the group."""
    ranks, steps = 64, 128
    shape = replace(hello(0), ranks=ranks, counts=m.Counts.SENT, layers=8)
    made = Relay(shape, LEADER, SETTINGS, now=0.0)
    counts = np.full((steps, 8, ranks * SLOTS), 70_000, dtype=np.int32)
    told = np.ones(steps, dtype=np.int32)
    for rank in range(8):
        made.hello(b"%d" % rank, 1, replace(shape, rank=rank))
        zeros = np.zeros(steps, dtype=np.bool_)
        made.heard(
            rank, 2, m.HeatReport(1, 0, "decode", counts, told.astype(np.int64), told, zeros)
        )
    made.led()
    found = heat(made, 0.05)
    assert sorted(rank for h in found for rank in h.ranks.tolist()) == [*range(8)]
    assert max(h.counts.nbytes for h in found) <= HEAT_BYTES
    assert len(found) == 2


def test_its_entries_of_the_node_name_no_rank() -> None:
    made = relay(3)
    made.heard(3, 2, report())
    made.tick(0.05)
    assert [(e.group, e.rank, e.seq) for e in up(made)] == [("g", NODE, 0)]


def stands(digest: str, first: int = 0) -> m.Stands:
    slots = np.full((4, 64, 9), first, dtype=np.int32)
    return m.Stands(1, 0, digest, m.Standing.IDLE, 0, 7, 0, slots)


def test_a_map_that_several_ranks_hold_goes_up_once() -> None:
    made = relay(1, 2, 3, 4)
    said = [stands("one"), stands("one"), stands("other"), stands("other", 1)]
    for rank, message in enumerate(said, start=1):
        made.heard(rank, 2, message)
    frames = UP.encode(1, 1, up(made))
    maps = [frame for frame in frames if len(frame) == said[0].slots.nbytes]
    assert len(maps) == 2, "whatever digest they are said to have"
    for entry, message in zip(UP.decode(frames).entries, said, strict=True):
        assert isinstance(entry.message, m.Stands)
        assert entry.message.digest == message.digest
        assert np.array_equal(entry.message.slots, message.slots)
