"""What goes wrong on the way of the weights and of the arms: one rank's fault, nobody's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from eplbd.core import messages as m
from eplbd.core.messages import Gate, Verdict
from tests.chaos.control import Fault, Report
from tests.chaos.lab import ARM_TIMEOUT_S, TEST_S, Lab
from tests.chaos.proxy import DROP, Passing
from tests.chaos.rules import says
from tests.chaos.served import LINE_S, Line
from tests.chaos.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]


def _strikes(lab: Lab, rank: int, fault: Fault, seconds: float = 0.0) -> tuple[Line, list[Report]]:
    """Let a fault strike; the line of the epoch that it struck, and the reports before."""
    before, mark = lab.group.reports(), lab.daemon.mark()
    lab.group.inject(rank, fault, seconds=seconds)
    lab.group.struck(rank, fault, before[rank].struck.count(fault) + 1)
    aborted = lab.daemon.line("epoch ended", mark=mark, outcome="aborted")
    return aborted, before


def _lanes(reports: Sequence[Report]) -> list[int]:
    return [report.lane for report in reports]


def test_a_byte_flips_in_a_staging_buffer(lab: Lab) -> None:
    with lab.scenario("a byte flips"):
        aborted, before = _strikes(lab, 1, Fault.DAMAGE)
        assert aborted["reason"].startswith("rank 1: round ")
        assert "'w13' differs from what its holder sealed" in aborted["reason"]
        assert _lanes(lab.group.reports()) == _lanes(before)


def test_a_round_fails_on_one_rank(lab: Lab) -> None:
    """It carries the remaining rounds through all the same, so no peer's transfer fails."""
    with lab.scenario("a round fails"):
        aborted, before = _strikes(lab, 1, Fault.FAIL_STAGE)
        assert "a kernel of the test failed" in aborted["reason"]
        now = lab.group.reports()
        assert _lanes(now) == _lanes(before)
        assert [r.failures for r in now] == [r.failures for r in before]


def test_a_transfer_breaks_its_lane(lab: Lab) -> None:
    with lab.scenario("a lane breaks"):
        aborted, before = _strikes(lab, 2, Fault.CUT_LANE)
        assert "rank" in aborted["reason"]
        lab.settles_further()
        now = lab.group.reports()
        assert _lanes(now) == [lane + 1 for lane in _lanes(before)]


def test_a_round_takes_its_time(lab: Lab) -> None:
    with lab.scenario("a slow round"):
        mark = lab.daemon.mark()
        lab.group.inject(1, Fault.SLOW_STAGE, seconds=1.0)
        lab.group.struck(1, Fault.SLOW_STAGE)
        until(
            lambda: any(line["stage_s"] >= 1.0 for line in lab.daemon.since(mark, "epoch ended")),
            LINE_S,
            "the epoch with the slow round ends",
        )
        assert not any(lab.daemon.since(mark, "epoch ended", outcome="aborted"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [(Fault.REFUSE, "the test has taken it"), (Fault.REFUSE_MAPS, "leaves no room for them")],
)
def test_one_agent_refuses(lab: Lab, fault: Fault, words: str) -> None:
    with lab.scenario(fault):
        aborted, before = _strikes(lab, 2, fault)
        assert aborted["reason"].startswith("rank 2: ")
        assert words in aborted["reason"]
        assert aborted["stage_s"] == 0.0
        assert _lanes(lab.group.reports()) == _lanes(before)


# --- too late for the armed forward ---------------------------------------------------------------


@dataclass
class Withheld:
    """Keeps a rank's messages of one kind back in the first attempt of the first epoch it sees.

    What goes through in the end is what is sent again in a later attempt.
    """

    kind: type[m.Message]
    rank: int
    epoch: int = 0
    times: int = 0

    def __call__(self, passing: Passing) -> Sequence[float] | None:
        message = passing.message
        if passing.rank != self.rank or not isinstance(message, self.kind):
            return None
        epoch = getattr(message, "epoch", 0)
        if getattr(message, "attempt", 0) != 1 or self.epoch not in (0, epoch):
            return None
        self.epoch = epoch
        self.times += 1
        return DROP


ARM_HELD_S = ARM_TIMEOUT_S * 2 / 3
"""Longer than the forwards up to the armed one take, while the leader has not given up yet."""


@dataclass
class TooLate:
    """Lets rank 1 hear of an epoch's first attempt when its forward is over.

    The others give that attempt up by themselves; the leader does not hear of it before rank 1 has
    said that it is late, or the leader gives it up as well. Where the forwards took so long that
    rank 1 was not late after all, the next epoch will do.

    late: the epoch in which rank 1 was; 0 until then.
    """

    epoch: int = 0
    held: int = 0
    over: bool = False
    late: int = 0

    def __call__(self, passing: Passing) -> Sequence[float] | None:
        match passing.message:
            case m.Arm(epoch=epoch, attempt=1) if epoch >= self.epoch and not self.late:
                self.over &= epoch == self.epoch
                self.epoch = epoch
                return self._arm(passing.rank)
            case m.Late(epoch=self.epoch, attempt=1):
                self.late, self.over = self.epoch, True
            case m.Decide(epoch=self.epoch, verdict=Verdict.ABORT):
                self.over = True
            case m.Decided(epoch=self.epoch, gate=Gate.FLIP, attempt=1) if not self.over:
                return DROP
            case _:
                pass
        return None

    def _arm(self, rank: int) -> Sequence[float] | None:
        if rank != 1:
            return None
        repeated, self.held = self.held == self.epoch, self.epoch
        return DROP if repeated else (ARM_HELD_S,)


def _ended(lab: Lab, epoch_of: Callable[[], int]) -> Line:
    """The line of the epoch that a rule chose."""
    lab.group.until(lambda _: epoch_of() > 0, "an epoch that the rule is about")
    return lab.daemon.line("epoch ended", epoch=epoch_of())


def test_one_rank_hears_too_late_that_it_is_armed(lab: Lab) -> None:
    with lab.scenario("late arm"):
        rule = TooLate()
        with lab.group.proxy.obeying(rule):
            ended = _ended(lab, lambda: rule.late)
        assert ended["outcome"] == "settled"
        assert ended["attempts"] > 1


def test_the_leader_does_not_hear_that_one_rank_is_armed(lab: Lab) -> None:
    """Forward N comes: all write abort, and the next attempt settles."""
    with lab.scenario("late armed"):
        rule = Withheld(m.Armed, 1)
        with lab.group.proxy.obeying(rule):
            ended = _ended(lab, lambda: rule.epoch)
        assert ended["outcome"] == "settled"
        assert ended["attempts"] > 1


def test_one_rank_is_never_told_that_the_flip_is_decided(lab: Lab) -> None:
    """The register tells it in time, so the first attempt settles."""
    with lab.scenario("no confirm"):
        rule = Withheld(m.Confirm, 1)
        with lab.group.proxy.obeying(rule):
            ended = _ended(lab, lambda: rule.epoch)
        assert (ended["outcome"], ended["attempts"]) == ("settled", 1)
        assert rule.times


SLOW_REGISTER_S = 1.5
NEXT_ARM_S = 0.8


def test_the_register_is_slow_for_one_rank(lab: Lab) -> None:
    """The one wait: at its armed forward rank 2 waits for an answer that is still under way.

    (Not rank 1: it writes for the leader, which finds out by itself that a scribe is slow.)
    Rank 0's acknowledgement is held back, so the others write abort, and the next attempt's arm
    finds rank 2 waiting. It has to count all the same. Meanwhile the clock stands still everywhere.
    """
    withheld, next_arm = Withheld(m.Armed, 0), says(m.Arm, attempt=2)

    def rule(passing: Passing) -> Sequence[float] | None:
        if passing.rank == 2 and next_arm(passing):
            return (NEXT_ARM_S,)
        return withheld(passing)

    with lab.scenario("slow register", register_s=SLOW_REGISTER_S):
        with lab.group.proxy.obeying(rule):
            lab.group.inject(2, Fault.SLOW_REGISTER, seconds=SLOW_REGISTER_S)
            lab.group.struck(2, Fault.SLOW_REGISTER)
            ended = _ended(lab, lambda: withheld.epoch)
        assert ended["outcome"] == "settled"
        assert ended["attempts"] > 1
        assert lab.group.reports()[2].max_hook_s > NEXT_ARM_S / 4


def test_an_agent_pauses(lab: Lab) -> None:
    """As where Python hangs: the socket's own thread answers, so only the protocol can notice."""
    with lab.scenario("a paused agent"):
        mark = lab.daemon.mark()
        lab.group.inject(1, Fault.PAUSE_AGENT, seconds=lab.bound.silence_s + 0.5)
        lost = lab.daemon.line("rank lost", mark=mark, rank=1)
        assert "silent" in lost["reason"]


def test_the_stage_gate_is_answered_twice(lab: Lab) -> None:
    """A repeated order to write is no second decision."""
    decide = says(m.Decide, gate=Gate.STAGE)
    with lab.scenario("repeated decide"):
        mark = lab.daemon.mark()
        with lab.group.proxy.obeying(lambda p: (0.0, 0.0, 0.05) if decide(p) else None):
            lab.daemon.line("epoch ended", mark=mark, outcome="settled")
