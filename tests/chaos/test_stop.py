"""SIGSTOP at several phases of an epoch, for longer than the ranks wait, then SIGCONT.

A stopped daemon is worse than a dead one: it wakes up in the middle of an order, with the world of
long ago in its queues.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

import pytest

from eplbd.core import messages as m
from eplbd.core.messages import Gate, Verdict
from tests.chaos.lab import TEST_S, Lab
from tests.chaos.rules import Match, Moment, says

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]


@dataclass(frozen=True)
class Phase:
    """When the daemon stops. deaf: what it had sent by then is lost, not only late."""

    name: str
    matches: Match
    nth: int = 1
    deaf: bool = False
    commits: bool = False


PHASES = (
    Phase("some are prepared", says(m.Prepared), nth=2),
    Phase("one was told to stage", says(m.Stage), nth=2, deaf=True),
    Phase("all are staged", says(m.Staged), nth=3),
    Phase("one was told to arm", says(m.Arm), nth=2, deaf=True),
    Phase("all are armed", says(m.Decide, gate=Gate.FLIP, verdict=Verdict.COMMIT), deaf=True),
    Phase(
        "the flip is decided",
        says(m.Decided, gate=Gate.FLIP, verdict=Verdict.COMMIT),
        commits=True,
    ),
    Phase("one is confirmed", says(m.Confirm), nth=2, deaf=True, commits=True),
    Phase("all have flipped", says(m.Committed), commits=True),
)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_stopped_and_continued(lab: Lab, phase: Phase) -> None:
    """The ranks end the epoch without it; the daemon, awake again, finds out how it ended."""
    with lab.scenario(f"stopped: {phase.name}"):
        before = lab.group.reports()
        moment = Moment(
            phase.matches, lambda: lab.daemon.signal(signal.SIGSTOP), phase.nth, deaf=phase.deaf
        )
        with lab.at(moment):
            mark = lab.daemon.mark()
            alone = lab.group.until(
                lambda now: all(r.standing == "idle" and not r.connected for r in now),
                "the ranks have ended the epoch",
            )
        lab.daemon.signal(signal.SIGCONT)
        epoch = getattr(moment.message, "epoch", 0)
        assert {r.epoch for r in alone} == {epoch if phase.commits else epoch - 1}
        assert [r.lane for r in alone] == [r.lane for r in before]
        outcome = "settled" if phase.commits else "aborted"
        ended = lab.daemon.line("epoch ended", mark=mark, epoch=epoch)
        assert ended["outcome"] == outcome
        lost = lab.daemon.line("rank lost", mark=mark)
        assert "silent" in lost["reason"]
