"""The register of one process: whoever writes first decides for everybody."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from eplbd.core.messages import Verdict
from eplbd.worker.register import MemoryRegister, RegisterError


def test_the_first_proposal_holds() -> None:
    register = MemoryRegister()
    assert register.decide("a", Verdict.ABORT, deadline_s=1.0) is Verdict.ABORT
    assert register.decide("a", Verdict.COMMIT, deadline_s=1.0) is Verdict.ABORT
    assert register.decide("b", Verdict.COMMIT, deadline_s=1.0) is Verdict.COMMIT


def test_a_forgotten_key_is_decided_anew() -> None:
    register = MemoryRegister()
    register.decide("a", Verdict.ABORT, deadline_s=1.0)
    register.forget("a", deadline_s=1.0)
    register.forget("a", deadline_s=1.0)
    assert register.decide("a", Verdict.COMMIT, deadline_s=1.0) is Verdict.COMMIT


def test_contending_threads_never_disagree() -> None:
    register, start, keys = MemoryRegister(), threading.Barrier(4), range(500)

    def contend(rank: int) -> list[Verdict]:
        wanted = (Verdict.COMMIT, Verdict.ABORT)
        start.wait()
        return [register.decide(str(key), wanted[(key + rank) % 2], deadline_s=5.0) for key in keys]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(contend, range(4)))
    assert answers == [answers[0]] * 4
    assert set(answers[0]) == set(Verdict)


def test_a_register_that_does_not_answer_is_an_error_naming_the_key() -> None:
    register = MemoryRegister()
    with register.stalled, pytest.raises(RegisterError, match=r"no answer for 'e7/flip' in 0.01 s"):
        register.decide("e7/flip", Verdict.ABORT, deadline_s=0.01)
    assert register.decide("e7/flip", Verdict.COMMIT, deadline_s=1.0) is Verdict.COMMIT


def test_a_name_holds_what_was_published_last() -> None:
    register = MemoryRegister()
    assert register.look("leader", deadline_s=1.0) == ""
    for value in ("here", "there"):
        register.publish("leader", value, deadline_s=1.0)
        assert register.look("leader", deadline_s=1.0) == value
    with register.stalled:
        with pytest.raises(RegisterError, match="'leader'"):
            register.look("leader", deadline_s=0.01)
        with pytest.raises(RegisterError, match="'leader'"):
            register.publish("leader", "nowhere", deadline_s=0.01)


def test_a_name_is_claimed_once() -> None:
    register = MemoryRegister()
    claimed = [register.claim(name, deadline_s=1.0) for name in ("a", "a", "b", "a")]
    assert claimed == [True, False, True, False]
    with register.stalled, pytest.raises(RegisterError, match="'c'"):
        register.claim("c", deadline_s=0.01)
