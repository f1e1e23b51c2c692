"""SIGKILL at every phase of an epoch: no rank diverges, and the next daemon learns the truth."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import pytest

from eplbd.core import messages as m
from eplbd.core.messages import Gate, Verdict
from tests.chaos.control import Fault, Report
from tests.chaos.lab import RECOVERY_S, TEST_S, Lab
from tests.chaos.rules import Exchanging, Match, Moment, says
from tests.chaos.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]


@dataclass(frozen=True)
class Phase:
    """When the daemon dies, and whether the epoch is then in force in the end.

    nth: rank whose message it is that comes last. passes: it still goes on. lanes: no transfer may
    have failed for it.
    """

    name: str
    matches: Match
    nth: int = 1
    passes: bool = False
    commits: bool = False
    slow_stage_s: float = 0.0
    stages: bool = False

    def moment(self, lab: Lab) -> Moment:
        return Moment(self.matches, lab.daemon.kill, self.nth, self.passes)


FLIP_DECIDED = says(m.Decided, gate=Gate.FLIP, verdict=Verdict.COMMIT)

PHASES = (
    Phase("one was asked to prepare", says(m.Prepare), nth=2),
    Phase("all were asked to prepare", says(m.Prepared)),
    Phase("some are prepared", says(m.Prepared), nth=2),
    Phase("the stage gate is decided", says(m.Decided, gate=Gate.STAGE), stages=True),
    Phase("one was told to stage", Exchanging(says(m.Stage)), nth=2, stages=True),
    Phase("staging is under way", says(m.Stage), nth=3, passes=True, slow_stage_s=0.5, stages=True),
    Phase("all are staged", says(m.Staged), nth=3, stages=True),
    Phase("one was told to arm", says(m.Arm), nth=2),
    Phase("all were told to arm", says(m.Armed)),
    Phase("all are armed", says(m.Decide, gate=Gate.FLIP, verdict=Verdict.COMMIT)),
    Phase("the flip is decided", FLIP_DECIDED, commits=True),
    Phase("one is confirmed", says(m.Confirm), nth=2, commits=True),
    Phase("all have flipped", says(m.Committed), commits=True),
    Phase("all have said committed", says(m.Committed), nth=3, passes=True, commits=True),
)
AT_ONCE = (
    "the stage gate is decided",
    "one was told to stage",
    "all are armed",
    "one is confirmed",
)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_killed_and_gone_for_a_while(lab: Lab, phase: Phase) -> None:
    """The ranks end the epoch among themselves; a daemon that starts later finds them idle."""
    with lab.scenario(f"killed: {phase.name}"):
        before = lab.group.reports()
        epoch = _die(lab, phase)
        alone = lab.group.until(
            lambda now: all(r.standing == "idle" and not r.connected for r in now),
            "the ranks have ended the epoch",
        )
        _ended(phase, epoch, before, alone)
        _taken_over(lab, alone)


@pytest.mark.parametrize(
    "phase", [phase for phase in PHASES if phase.name in AT_ONCE], ids=lambda phase: phase.name
)
def test_killed_and_back_at_once(lab: Lab, phase: Phase) -> None:
    """The next daemon is there before the ranks have missed the last one."""
    with lab.scenario(f"restarted: {phase.name}"):
        before = lab.group.reports()
        epoch = _die(lab, phase)
        lab.daemon.start()
        ready = lab.daemon.line("group ready")
        assert ready["epoch"] == epoch - (not phase.commits)
        assert all(r.lane == before[0].lane for r in lab.group.reports())


def _die(lab: Lab, phase: Phase) -> int:
    """Let the daemon die at this phase; the number of its last epoch."""
    if phase.slow_stage_s:
        lab.group.inject(1, Fault.SLOW_STAGE, seconds=phase.slow_stage_s)
    moment = phase.moment(lab)
    with lab.at(moment):
        _no_policy_is_left(lab)
    epoch = getattr(moment.message, "epoch", 0)
    assert isinstance(epoch, int)
    assert epoch
    return epoch


def _ended(phase: Phase, epoch: int, before: list[Report], alone: list[Report]) -> None:
    assert {r.epoch for r in alone} == {epoch if phase.commits else epoch - 1}
    # No sender was left without its receiver: that would have cost the lane.
    assert [(r.lane, r.failures) for r in alone] == [(r.lane, r.failures) for r in before]
    if phase.stages:
        assert sum(r.rounds for r in alone) > sum(r.rounds for r in before)


def _taken_over(lab: Lab, alone: list[Report]) -> None:
    lab.daemon.start()
    gathered = lab.daemon.line("group gathered")
    assert gathered["term"] > max(r.term for r in alone)
    ready = lab.daemon.line("group ready")
    assert (ready["epoch"], ready["digest"]) == (alone[0].epoch, alone[0].digest)


def _no_policy_is_left(lab: Lab) -> None:
    until(lambda: not any(map(_lives, lab.daemon.children)), RECOVERY_S, "the policy's end")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- what the dead daemon left behind -------------------------------------------------------------


def test_an_older_copy_of_the_state_comes_back(lab: Lab) -> None:
    """A restored backup must not make a daemon lead under a term that was led under before."""
    with lab.scenario("killed: stale state"):
        old = lab.daemon.folder / "old"
        shutil.copytree(lab.daemon.state, old)
        lab.daemon.kill()
        lab.daemon.start()
        lab.settles_further()
        _die(lab, PHASES[2])
        shutil.rmtree(lab.daemon.state)
        shutil.copytree(old, lab.daemon.state)
        shutil.rmtree(old)
        _taken_over(lab, lab.group.reports())


def test_the_state_is_damaged(lab: Lab) -> None:
    with lab.scenario("killed: damaged state"):
        _die(lab, PHASES[2])
        records = list(lab.daemon.state.glob("*.placement"))
        assert records
        for record in records:
            record.write_bytes(record.read_bytes()[:-1] + b"\xff")
        _taken_over(lab, lab.group.reports())
        refused = lab.daemon.line("stored placement refused, taken as absent")
        assert "damaged" in refused["reason"]
