"""The thread that asks the register: what it answers, and what it forgets."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator

import pytest

from eplbd.core.agent_events import (
    AgentEvent,
    AskRegister,
    LeaderFound,
    PublishLeader,
    RegisterAnswered,
    RegisterFailed,
    SeekLeader,
)
from eplbd.core.messages import Gate, Verdict
from eplbd.worker.register import MemoryRegister
from eplbd.worker.stager import Registrar
from tests.worker.waiting import DEADLINE_S

COMMIT, ABORT = Verdict.COMMIT, Verdict.ABORT


@pytest.fixture
def register() -> MemoryRegister:
    return MemoryRegister()


@pytest.fixture
def told() -> queue.SimpleQueue[AgentEvent]:
    return queue.SimpleQueue()


@pytest.fixture
def registrar(register: MemoryRegister, told: queue.SimpleQueue[AgentEvent]) -> Iterator[Registrar]:
    made = Registrar("g", register, told.put, incarnation="life 1", node="n1", deadline_s=0.05)
    made.thread.start()
    yield made
    made.stop()
    made.thread.join(DEADLINE_S)
    assert not made.thread.is_alive()


def test_the_first_who_asks_decides(
    register: MemoryRegister, registrar: Registrar, told: queue.SimpleQueue[AgentEvent]
) -> None:
    assert register.decide("eplbd/g/3/7/flip/2", COMMIT, deadline_s=1.0) is COMMIT
    registrar.order(AskRegister(3, 7, Gate.FLIP, 2, ABORT))
    assert told.get(timeout=DEADLINE_S) == RegisterAnswered(3, 7, Gate.FLIP, 2, COMMIT)
    registrar.order(AskRegister(3, 7, Gate.STAGE, 0, ABORT))
    assert told.get(timeout=DEADLINE_S) == RegisterAnswered(3, 7, Gate.STAGE, 0, ABORT)
    assert register.decide("eplbd/g/3/7/stage/0", COMMIT, deadline_s=1.0) is ABORT


def test_a_register_that_is_silent_is_told_and_can_be_asked_again(
    register: MemoryRegister, registrar: Registrar, told: queue.SimpleQueue[AgentEvent]
) -> None:
    ask = AskRegister(3, 7, Gate.FLIP, 1, COMMIT)
    with register.stalled:
        registrar.order(ask)
        failed = told.get(timeout=DEADLINE_S)
        registrar.retire(3, 6, 1)
        registrar.order(ask)
        assert isinstance(told.get(timeout=DEADLINE_S), RegisterFailed)
    assert isinstance(failed, RegisterFailed)
    assert (failed.term, failed.epoch, failed.gate, failed.attempt) == (3, 7, Gate.FLIP, 1)
    assert "eplbd/g/3/7/flip/1" in failed.reason
    registrar.order(ask)
    assert told.get(timeout=DEADLINE_S) == RegisterAnswered(3, 7, Gate.FLIP, 1, COMMIT)


def test_retiring_forgets_the_keys_of_one_epoch_alone(
    register: MemoryRegister, registrar: Registrar, told: queue.SimpleQueue[AgentEvent]
) -> None:
    asked = [(7, Gate.STAGE, 0), (7, Gate.FLIP, 1), (7, Gate.FLIP, 2), (8, Gate.FLIP, 1)]
    for epoch, gate, attempt in asked:
        register.decide(registrar.key(3, epoch, gate, attempt), COMMIT, deadline_s=1.0)
    registrar.retire(3, 7, 2)
    for epoch, gate, attempt in asked:
        registrar.order(AskRegister(3, epoch, gate, attempt, ABORT))
    verdicts = []
    for _ in asked:
        answered = told.get(timeout=DEADLINE_S)
        assert isinstance(answered, RegisterAnswered)
        verdicts.append(answered.verdict)
    assert verdicts == [ABORT, ABORT, ABORT, COMMIT]


NAME = "eplbd/g/leader/life 1"


def test_who_leads_is_found_where_it_was_published(
    registrar: Registrar, told: queue.SimpleQueue[AgentEvent]
) -> None:
    for endpoint in ("", "tcp://a:1", "tcp://b:2"):
        if endpoint:
            registrar.order(PublishLeader(endpoint, "key"))
        registrar.order(SeekLeader())
        key = "key" if endpoint else ""
        assert told.get(timeout=DEADLINE_S) == LeaderFound(endpoint, key)


def test_a_leader_is_published_once_and_again_if_that_failed(
    register: MemoryRegister, registrar: Registrar, told: queue.SimpleQueue[AgentEvent]
) -> None:
    probe = AskRegister(3, 7, Gate.FLIP, 1, COMMIT)
    with register.stalled:
        for order in (PublishLeader("tcp://a:1", "key"), SeekLeader(), probe):
            registrar.order(order)
        assert isinstance(told.get(timeout=DEADLINE_S), RegisterFailed), "a silent store is no news"
    for written in ("tcp://a:1 key", "by another"):
        registrar.order(PublishLeader("tcp://a:1", "key"))
        registrar.order(probe)
        assert isinstance(told.get(timeout=DEADLINE_S), RegisterAnswered)
        if written == "by another":
            break
        assert register.look(NAME, deadline_s=1.0) == written
        register.publish(NAME, "by another", deadline_s=1.0)
    assert register.look(NAME, deadline_s=1.0) == "by another", "it was known there already"


def test_a_refusal_is_said_by_one_rank_of_each_node(
    register: MemoryRegister, caplog: pytest.LogCaptureFixture
) -> None:
    told: queue.SimpleQueue[AgentEvent] = queue.SimpleQueue()
    made = [
        Registrar("g", register, told.put, incarnation="life 1", node=node, deadline_s=5.0)
        for node in ("n1", "n1", "n2")
    ]
    for registrar in made:
        registrar.refused("upgrade")
        registrar.refused("upgrade")
        registrar.stop()
        registrar.thread.start()
    for registrar in made:
        registrar.thread.join(DEADLINE_S)
    assert [record.getMessage() for record in caplog.records] == [
        "eplbd refuses this worker: upgrade",
        "eplbd refuses this worker: upgrade",
    ]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_a_refusal_of_one_rank_alone_is_said_and_so_is_one_that_no_store_can_share(
    register: MemoryRegister,
    registrar: Registrar,
    told: queue.SimpleQueue[AgentEvent],
    caplog: pytest.LogCaptureFixture,
) -> None:
    registrar.refused("upgrade")
    registrar.refused("its weights are others")
    registrar.order(AskRegister(3, 7, Gate.FLIP, 1, COMMIT))
    told.get(timeout=DEADLINE_S)
    with register.stalled:
        registrar.refused("no room")
        registrar.order(AskRegister(3, 7, Gate.FLIP, 2, COMMIT))
        assert isinstance(told.get(timeout=DEADLINE_S), RegisterFailed)
    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert said == ["upgrade", "its weights are others", "no room"]
