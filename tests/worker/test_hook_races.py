"""The agent thread places arms while the forward thread runs.

First every order in which the two can meet: one thread is stopped at each instruction in turn and
the other one acts there. Then real threads, as fast as they can.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Thread
from types import CodeType, FrameType
from typing import TYPE_CHECKING

import pytest

from eplbd.core.messages import Verdict
from eplbd.worker.hook import Arm, ForwardHook
from tests.worker.engines import Engine, switching_every
from tests.worker.waiting import DEADLINE_S, aside, until

if TYPE_CHECKING:
    from _typeshed import TraceFunction

COMMIT, ABORT = Verdict.COMMIT, Verdict.ABORT
INSTRUCTIONS = 8
"""A traced function that has fewer was not traced."""


class Watched(Event):
    """Tells whether somebody waits for it, or has."""

    waited = False

    def wait(self, timeout: float | None = None) -> bool:
        self.waited = True
        return super().wait(timeout)


@dataclass
class Interruption:
    """Runs `act` before instruction `position` of `code`, in a call of `function`."""

    code: CodeType
    position: int
    act: Callable[[], object]
    came: int = field(default=0)

    def during(self, function: Callable[[], object]) -> None:
        sys.settrace(self._enter)
        try:
            function()
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _: object) -> TraceFunction | None:
        if frame.f_code is not self.code:
            return None
        frame.f_trace_opcodes = True
        return self._trace

    def _trace(self, _frame: FrameType, event: str, _: object) -> TraceFunction | None:
        if event == "opcode":
            if self.came == self.position:
                sys.settrace(None)
                self.act()
            self.came += 1
        return self._trace


def positions(code: CodeType) -> range:
    """Every instruction, and more than are executed."""
    return range(len(code.co_code) // 2)


@pytest.mark.parametrize("guard", [0, 1])
@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_forwards_come_anywhere_within_placing(guard: int, ahead: int) -> None:
    outcomes = []
    for position in positions(ForwardHook.place.__code__):
        for count in range(1, ahead + guard + 2):
            engine, watched = Engine(), Watched()
            engine.stage()
            engine.forwards(5)
            at = 5 + ahead + guard
            arm = Arm(3, 1, 1, at, at - guard, lambda e=engine: e.write(1), decided=watched)  # type: ignore[misc]
            thread = Thread(target=engine.forwards, args=(5 + count,), daemon=True)

            def run(thread: Thread = thread, watched: Watched = watched) -> None:
                thread.start()
                until(lambda: watched.waited or not thread.is_alive(), "forwards pass, or wait")

            placed: list[bool] = []
            interruption = Interruption(ForwardHook.place.__code__, position, run)
            interruption.during(lambda e=engine, a=arm, p=placed: p.append(e.hook.place(a)))  # type: ignore[misc]
            if interruption.came <= position:
                break
            outcomes.append(placed == [True])
            arm.resolve(COMMIT if placed == [True] else ABORT)
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "a forward hangs"
            engine.forwards(at + 2)
            assert engine.flips == ([(1, at)] if placed == [True] else []), (position, count)
    assert len(outcomes) > INSTRUCTIONS
    assert len(set(outcomes)) == 2 or ahead == 3


@pytest.mark.parametrize("guard", [0, 1])
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_placing_comes_anywhere_within_a_forward(guard: int, ahead: int) -> None:
    outcomes = []
    for position in positions(ForwardHook.before_forward.__code__):
        engine = Engine()
        engine.stage()
        engine.forwards(5)
        at = 6 + ahead + guard
        arm = engine.arm(at, guard)

        def act(engine: Engine = engine, arm: Arm = arm) -> None:
            if engine.hook.place(arm):
                arm.resolve(COMMIT)

        interruption = Interruption(ForwardHook.before_forward.__code__, position, act)
        interruption.during(engine.forward)
        if interruption.came <= position:
            break
        outcomes.append(arm.verdict)
        engine.forwards(at + 2)
        assert engine.flips == ([(1, at)] if arm.verdict is COMMIT else []), position
    assert len(outcomes) > INSTRUCTIONS
    assert (ABORT in outcomes) == (ahead == 0)


def test_the_next_attempt_comes_anywhere_within_the_one_before() -> None:
    code, outcomes = ForwardHook._armed.__code__, 0  # noqa: SLF001 (where a race could be)
    for position in positions(code):
        engine = Engine()
        engine.stage()
        first, second = engine.arm(at=3), engine.arm(at=6, attempt=2)
        assert engine.hook.place(first)
        first.resolve(ABORT)

        def act(engine: Engine = engine, second: Arm = second) -> None:
            assert engine.hook.place(second)
            second.resolve(COMMIT)

        interruption = Interruption(code, position, act)
        interruption.during(lambda e=engine: e.forwards(5))  # type: ignore[misc]
        if interruption.came <= position:
            break
        outcomes += 1
        engine.forwards(8)
        assert engine.flips == [(1, 6)], position
    assert outcomes > INSTRUCTIONS


@pytest.mark.parametrize("guard", [0, 1])
def test_placing_against_forwards_as_fast_as_they_come(guard: int) -> None:
    """True: the forward thread acts at `at` and nowhere else. False: it never flips nor waits."""
    engine, chance, ended = Engine(), random.Random(guard), Event()
    hook = engine.hook
    expected: list[tuple[int, int]] = []

    def run() -> None:
        while not ended.is_set():
            engine.forward()

    def place(epoch: int) -> None:
        engine.stage()
        at = hook.forward + chance.randint(1, 3) + guard
        arm = engine.arm(at, guard, epoch=epoch)
        for _ in range(chance.randrange(200)):
            pass  # the interpreter may switch here
        verdict = chance.choice((COMMIT, COMMIT, ABORT))
        if hook.place(arm):
            arm.resolve(verdict)
            if verdict is COMMIT:
                expected.append((epoch, at))
        until(lambda: hook.forward > at, f"forward {at} passes")

    with switching_every(1e-6), aside(run, "forwards"):
        try:
            for epoch in range(1, 401):
                place(epoch)
        finally:
            ended.set()
    assert engine.flips == expected
    assert 0 < len(expected) < 400
