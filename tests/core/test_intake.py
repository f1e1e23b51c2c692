"""How much heat is taken: an equal share of the time for every group, whatever the others send."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplbd.core import messages as m
from eplbd.core.events import Event, Note, Received, Tick
from eplbd.core.intake import BURST_S, IDLE_S, SHARE, Intake
from eplbd.core.node import Node
from eplbd.core.settings import Settings
from tests.hellos import hello


def report(intake: Intake, group: str, seconds: float, now: float) -> bool:
    """Whether a report that takes so long is taken."""
    taken = intake.takes(group, now)
    intake.took(seconds)
    return taken


def test_one_group_has_all_there_is_and_no_more() -> None:
    intake, each_s = Intake(), 0.005
    times = [step / 100 for step in range(1000)]
    spent = sum(each_s * report(intake, "g", each_s, now) for now in times)
    assert times[-1] * SHARE <= spent <= (times[-1] + BURST_S) * SHARE + each_s
    assert intake.refused == len(times) - round(spent / each_s)


@given(st.floats(1e-4, 5.0), st.integers(1, 20), st.floats(1e-4, 0.05), st.data())
def test_a_flood_takes_nothing_from_who_stays_within_its_share(
    flood_s: float, groups: int, honest_s: float, data: st.DataObject
) -> None:
    intake, share = Intake(), SHARE / (groups + 1)
    for turn in range(50):
        now = turn * honest_s / share
        for group in range(groups):
            for _ in range(data.draw(st.integers(0, 2))):
                report(intake, f"flood{group}", flood_s, now)
        assert report(intake, "honest", honest_s, now)


def test_what_piled_up_is_taken_at_once() -> None:
    intake = Intake()
    assert all(report(intake, "g", SHARE * BURST_S / 8, 1.0) for _ in range(8))
    assert not report(intake, "g", 0.001, 1.0)
    assert report(intake, "g", 0.001, 1.1), "and then as fast as the share allows"


def test_no_report_takes_too_long_for_ever() -> None:
    intake = Intake()
    assert report(intake, "g", 10.0, 0.0)
    assert not report(intake, "g", 10.0, 10.0)
    assert report(intake, "g", 10.0, 10.0 / SHARE)


def test_who_is_gone_has_no_share() -> None:
    intake = Intake()
    for group in range(9):
        report(intake, f"gone{group}", 0.001, 0.0)
    assert report(intake, "g", SHARE * BURST_S * 0.9, IDLE_S)
    assert report(intake, "g", 0.001, IDLE_S), "the whole of a burst, not a tenth"


@pytest.mark.parametrize("leader", ["", "tcp://elsewhere:1"], ids=["led", "relayed"])
def test_the_daemon_drops_counts_and_says_it_once(leader: str) -> None:
    said = hello(ranks=2, rank=1, leader=leader, leader_key="k" * 40 if leader else "")
    node = Node(Settings())
    heat = m.HeatReport(
        epoch=0,
        first_forward=0,
        phase="all",
        counts=np.zeros((1, said.layers, said.slots_per_rank), dtype=np.int32),
        routed=np.zeros(1, dtype=np.int64),
        tokens=np.zeros(1, dtype=np.int32),
        dummy=np.zeros(1, dtype=np.bool_),
    )

    def noted(*events: Event, took_s: float = BURST_S) -> list[Note]:
        """As a daemon steps, on a machine that takes so long for each."""
        effects = []
        for event in events:
            effects += node.step(event)
            node.intake.took(took_s)
        return [effect for effect in effects if isinstance(effect, Note)]

    assert not noted(Tick(1.0), Received(b"p", 1, said), took_s=100.0), "of heat alone"
    notes = noted(*(Received(b"p", seq, heat) for seq in range(2, 6)))
    assert [note.event for note in notes] == ["heat dropped"]
    assert "'g'" in str(notes[0].fields["reason"])
    assert node.statistics().excess == 3
    noted(*(Tick(float(now)) for now in range(2, 12)), Received(b"p", 6, heat))
    assert node.statistics().excess == 3, "there is room again"
