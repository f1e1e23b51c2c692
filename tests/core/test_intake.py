"""How much heat is taken: an equal share for every group, whatever the others send."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core import messages as m
from eplbd.core.events import Note, Received, Tick
from eplbd.core.intake import BURST_S, IDLE_S, Intake
from eplbd.core.node import Node
from eplbd.core.settings import SessionSettings, Settings
from tests.core.test_admission import HELLO, told

RATE = 1000.0


def taken(intake: Intake, group: str, nbytes: int, *, times: list[float]) -> int:
    """Bytes of these reports that were taken."""
    return sum(nbytes * intake.takes(group, nbytes, RATE, now) for now in times)


def test_one_group_has_all_there_is_and_no_more() -> None:
    intake = Intake()
    times = [step / 100 for step in range(1000)]
    bytes_taken = taken(intake, "g", 50, times=times)
    assert RATE * times[-1] <= bytes_taken <= RATE * (times[-1] + BURST_S) + 50
    assert intake.refused == len(times) - bytes_taken // 50


@given(
    flood=st.integers(1, 5_000),
    groups=st.integers(1, 20),
    honest=st.integers(1, 100),
    data=st.data(),
)
def test_a_flood_takes_nothing_from_who_stays_within_its_share(
    flood: int, groups: int, honest: int, data: st.DataObject
) -> None:
    intake, share = Intake(), RATE / (groups + 1)
    every_s = honest / share
    for turn in range(50):
        now = turn * every_s
        for group in range(groups):
            for _ in range(data.draw(st.integers(0, 2))):
                intake.takes(f"flood{group}", flood, RATE, now)
        assert intake.takes("honest", honest, RATE, now)


def test_what_piled_up_is_taken_at_once() -> None:
    intake = Intake()
    assert all(intake.takes("g", int(RATE * BURST_S) // 8, RATE, 1.0) for _ in range(8))
    assert not intake.takes("g", 1, RATE, 1.0)
    assert intake.takes("g", 1, RATE, 1.1), "and then as fast as the share allows"


def test_no_report_is_too_large_for_ever() -> None:
    intake = Intake()
    vast = int(100 * RATE)
    assert intake.takes("g", vast, RATE, 0.0)
    assert not intake.takes("g", 1, RATE, 90.0)
    assert intake.takes("g", vast, RATE, 100.0)


def test_who_is_gone_has_no_share() -> None:
    intake = Intake()
    for group in range(9):
        intake.takes(f"gone{group}", 1, RATE, 0.0)
    intake.takes("g", 1, RATE, IDLE_S)
    assert intake.takes("g", int(BURST_S * RATE) - 2, RATE, IDLE_S)
    assert intake.takes("g", 1, RATE, IDLE_S), "the whole of a burst, not a tenth"


def test_the_daemon_drops_counts_and_says_it_once() -> None:
    session = SessionSettings(max_heat_bytes_per_s=RATE)
    node = Node(Settings(session=session))
    hello = replace(HELLO, slots_per_rank=250)
    report = m.HeatReport(
        epoch=0,
        first_forward=0,
        phase="all",
        counts=np.zeros((1, hello.layers, 250), dtype=np.int32),
        routed=np.zeros(1, dtype=np.int64),
        tokens=np.zeros(1, dtype=np.int32),
        dummy=np.zeros(1, dtype=np.bool_),
    )
    told(node, Tick(1.0), Received(b"p", 1, hello))
    heard = [Received(b"p", seq, report) for seq in range(2, 6)]
    assert report.counts.nbytes == 4 * RATE
    notes = [effect for effect in told(node, *heard) if isinstance(effect, Note)]
    assert [note.event for note in notes] == ["heat dropped"]
    assert "session.max_heat_bytes_per_s" in str(notes[0].fields["reason"])
    assert node.statistics().excess == len(heard) - 1
    assert not [effect for effect in told(node, Tick(3.9), *heard[:1]) if isinstance(effect, Note)]
    assert node.statistics().excess == len(heard) - 1, "there is room again"
