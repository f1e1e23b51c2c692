"""The two calls around a forward: when it flips, when it waits, and what it tells whom.

Real parts: an executor that has staged a copy from slot 0 to slot 1, a ring, threads.
"""

from time import perf_counter

import pytest

from eplbd.core.agent_events import Flipped, Neared
from eplbd.core.messages import Verdict
from eplbd.errors import LocalProtocolError
from eplbd.worker.register import RegisterError
from tests.worker.engines import Engine, switching_every
from tests.worker.waiting import aside, until

COMMIT, ABORT = Verdict.COMMIT, Verdict.ABORT


@pytest.fixture
def engine() -> Engine:
    made = Engine()
    made.stage()
    return made


# --- the flip -----------------------------------------------------------------------------------


def test_it_flips_before_exactly_the_armed_forward(engine: Engine) -> None:
    arm = engine.arm(at=5, guard=2)
    assert engine.hook.place(arm)
    arm.resolve(COMMIT)
    engine.forwards(4)
    assert engine.flips == []
    assert engine.weights[1] == 0
    engine.hook.before_forward()
    assert engine.flips == [(1, 5)]
    engine.hook.after_forward(1)
    engine.forwards(9)
    assert engine.flips == [(1, 5)]
    flipped = engine.told[-1]
    assert isinstance(flipped, Flipped)
    assert (flipped.term, flipped.epoch, flipped.at) == (3, 1, 5)
    assert flipped.stall_s < 1.0


def test_an_abort_never_flips(engine: Engine) -> None:
    arm = engine.arm(at=5, guard=2)
    assert engine.hook.place(arm)
    arm.resolve(ABORT)
    engine.forwards(9)
    assert engine.flips == []
    assert engine.told == []
    assert engine.weights[1] == 0
    engine.executor.discard()


def test_heat_changes_its_epoch_with_the_map(engine: Engine) -> None:
    arm = engine.arm(at=5, epoch=8)
    assert engine.hook.place(arm)
    arm.resolve(COMMIT)
    engine.forwards(7)
    engine.ring.flush()
    blocks = engine.ring.drain()
    assert [(b.first_forward, len(b.tokens), b.epoch) for b in blocks] == [(1, 4, 0), (5, 3, 8)]


def test_a_verdict_does_not_change() -> None:
    arm = Engine().arm(at=5)
    arm.resolve(COMMIT)
    arm.resolve(COMMIT)
    with pytest.raises(LocalProtocolError, match="cannot be abort"):
        arm.resolve(ABORT)
    assert arm.verdict is COMMIT


# --- undecided ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", list(Verdict))
def test_undecided_it_waits_and_either_verdict_releases_it(
    engine: Engine, verdict: Verdict
) -> None:
    arm = engine.arm(at=5, guard=2)
    assert engine.hook.place(arm)
    with aside(lambda: engine.forwards(8), f"a forward that was told {verdict}"):
        until(lambda: engine.hook.forward == 5, "the armed forward begins")
        assert engine.flips == []
        assert engine.hook.forward == 5
        arm.resolve(verdict)
    assert engine.hook.forward == 8
    assert engine.flips == ([(1, 5)] if verdict is COMMIT else [])


def test_the_wait_has_an_end() -> None:
    engine = Engine(wait_limit_s=0.01)
    assert engine.hook.place(engine.arm(at=2))
    engine.forward()
    with pytest.raises(RegisterError, match=r"epoch 1: .* 0\.01 s at forward 2; its host, rank 0"):
        engine.hook.before_forward()
    assert engine.flips == []


def test_the_stall_is_told(engine: Engine) -> None:
    arm = engine.arm(at=1)
    assert engine.hook.place(arm)
    before = perf_counter()
    with aside(engine.forward, "a forward that waited"):
        until(lambda: engine.hook.forward == 1, "the armed forward begins")
        seen = perf_counter()
        until(lambda: perf_counter() > seen + 0.01, "time goes on")
        arm.resolve(COMMIT)
    flipped = engine.told[-1]
    assert isinstance(flipped, Flipped)
    assert 0.009 < flipped.stall_s < perf_counter() - before


def test_the_next_attempt_outlives_the_wait_for_the_one_before(engine: Engine) -> None:
    """It is placed before the forward thread, just released, has run another instruction."""
    first, second = engine.arm(at=3), engine.arm(at=6, attempt=2)
    assert engine.hook.place(first)
    with aside(lambda: engine.forwards(8), "the second attempt"):
        until(lambda: engine.hook.forward == 3, "the armed forward begins")
        with switching_every(10.0):
            first.resolve(ABORT)
            assert engine.hook.place(second)
            second.resolve(COMMIT)
    assert engine.flips == [(1, 6)]


# --- near ---------------------------------------------------------------------------------------


def test_nearness_is_told_once(engine: Engine) -> None:
    arm = engine.arm(at=9, guard=4, attempt=2)
    assert engine.hook.place(arm)
    engine.forwards(4)
    assert engine.told == []
    engine.forwards(8)
    assert engine.told == [Neared(3, 1, 2)]
    arm.resolve(ABORT)
    engine.forwards(12)
    assert engine.told == [Neared(3, 1, 2)]


def test_nearness_is_nothing_to_tell_once_it_is_decided(engine: Engine) -> None:
    arm = engine.arm(at=9, guard=4)
    assert engine.hook.place(arm)
    engine.forwards(4)
    arm.resolve(COMMIT)
    engine.forwards(8)
    assert engine.told == []


def test_an_attempt_without_a_guard_still_tells(engine: Engine) -> None:
    arm = engine.arm(at=2)
    assert engine.hook.place(arm)
    with aside(lambda: engine.forwards(2), "a forward without a guard"):
        until(lambda: engine.told == [Neared(3, 1, 1)], "the agent hears of the wait")
        arm.resolve(ABORT)


# --- placing late -------------------------------------------------------------------------------


@pytest.mark.parametrize(("forward", "in_time"), [(5, True), (6, False), (7, False), (9, False)])
def test_placing_is_late_from_the_guard_on(engine: Engine, forward: int, in_time: bool) -> None:
    engine.forwards(forward)
    arm = engine.arm(at=8, guard=2)
    assert engine.hook.place(arm) is in_time
    assert arm.verdict is (None if in_time else ABORT)
    arm.resolve(ABORT)
    engine.forwards(12)
    assert engine.flips == []


# --- figures ------------------------------------------------------------------------------------


def pause(seconds: float) -> None:
    """A forward, or a gap, of this length."""
    end = perf_counter() + seconds
    until(lambda: perf_counter() >= end, "time goes on")


def test_times_of_forwards_and_gaps_add_up(engine: Engine) -> None:
    times, began = engine.hook.times, perf_counter()
    under_way = []
    for _ in range(5):
        engine.hook.before_forward()
        under_way.append(engine.hook.under_way)
        pause(0.002)
        engine.hook.after_forward(1)
        under_way.append(engine.hook.under_way)
        pause(0.001)
    assert under_way == [True, False] * 5
    took = perf_counter() - began
    assert (times.forwards, times.gaps, times.staging_forwards) == (5, 4, 0)
    assert times.forward_s >= 0.010
    assert times.gap_s >= 0.004
    assert times.forward_s + times.gap_s < took


def test_forwards_beside_rounds_have_figures_of_their_own(engine: Engine) -> None:
    hook, times = engine.hook, engine.hook.times
    engine.forward()
    assert not hook.bubble.is_set()
    hook.staging = True
    for _ in range(2):
        hook.before_forward()
        pause(0.002)
        hook.after_forward(1)
    assert hook.bubble.is_set()
    hook.staging = False
    engine.forward()
    assert (times.forwards, times.staging_forwards, times.gaps) == (2, 2, 3)
    assert times.staging_forward_s >= 0.004 > times.forward_s


def test_what_a_forward_was_is_kept(engine: Engine) -> None:
    engine.hook.before_forward()
    engine.hook.after_forward(12, phase=1)
    engine.hook.before_forward()
    engine.hook.after_forward(0, dummy=True, phase=1)
    engine.ring.flush()
    [block] = engine.ring.drain()
    assert (block.first_forward, block.tokens.tolist()) == (1, [12, 0])
    assert (block.dummy.tolist(), block.phase.tolist()) == ([False, True], [1, 1])
