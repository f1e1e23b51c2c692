"""The daemon's core as a whole: strangers, offenders, policies at fault, replay."""

from typing import Any

import numpy as np
import pytest

from eplbd.core import messages as m
from eplbd.core.events import (
    AskPolicy,
    CycleEnded,
    Effect,
    Event,
    Garbled,
    Note,
    PolicyAnswered,
    PolicyFailed,
    Received,
    Reconfigured,
    RememberFault,
    Send,
    Stop,
    Stopping,
    Tick,
)
from eplbd.core.node import Node
from eplbd.core.settings import PolicySettings, Settings
from eplbd.errors import LocalProtocolError
from tests.sim.world import QUICK, World


class Logged(World):
    """A world that keeps what its daemon was told and what it answered."""

    def __post_init__(self) -> None:
        self.events: list[Event] = []
        self.effects: list[Effect] = []
        super().__post_init__()

    def start_daemon(self, *, stale: bool = False) -> None:
        self.events.clear()
        self.effects.clear()
        super().start_daemon(stale=stale)

    def feed(self, event: Event) -> None:
        if self.node is not None:
            self.events.append(event)
        super().feed(event)

    def perform(self, effect: Effect) -> None:
        self.effects.append(effect)
        super().perform(effect)


def running(seed: int = 1, settings: Settings = QUICK) -> Logged:
    world = Logged(seed=seed, settings=settings)
    world.settle()
    return world


def here(world: World) -> Node:
    assert world.node is not None
    return world.node


def comparable(effect: Effect) -> Any:  # noqa: ANN401 - effects have no common form
    if isinstance(effect, Send):
        return effect.peer, repr(effect.message)
    return repr(effect)


@pytest.mark.parametrize("seed", range(4))
def test_a_replayed_log_gives_the_same_effects_and_state(seed: int) -> None:
    world = running(seed)
    again = Node(QUICK)
    effects = [effect for event in world.events for effect in again.step(event)]
    assert list(map(comparable, effects)) == list(map(comparable, world.effects))
    assert again.statistics() == here(world).statistics()


def test_a_stranger_is_asked_who_it_is() -> None:
    node = Node(QUICK)
    effects = node.step(Received(b"x", 1, m.Pulse(3)))
    assert effects == [Send(b"x", m.Greet())]
    assert node.statistics().unknown == 1


def test_an_offender_is_logged_once_and_counted_always() -> None:
    node = Node(QUICK)
    logged = [e for _ in range(5) for e in node.step(Garbled(b"x", "frame 0: truncated"))]
    assert [type(e) for e in logged] == [Note]
    assert node.statistics().garbled == 5


def test_impossible_heat_is_refused_and_nothing_else_changes() -> None:
    world = running()
    node = here(world)
    report = m.HeatReport(
        epoch=1,
        first_forward=10**6,
        phase="decode",
        counts=np.full((1, 2, 3), -5, dtype=np.int32),
        routed=np.zeros(1, dtype=np.int64),
        tokens=np.ones(1, dtype=np.int32),
        dummy=np.zeros(1, dtype=np.bool_),
    )
    world.feed(Received(world.peer(0), 10**6, report))
    assert node.statistics().rejected == 1
    world.settle()


def test_diverging_clocks_freeze_the_placement() -> None:
    """Slots processed what nobody routed: the audit stops all moves and says so."""
    world = running()
    group = here(world).balancers["sim"].group
    for rank in range(3):
        counts = np.ones((1, 2, 3), dtype=np.int32)
        report = m.HeatReport(
            epoch=group.epoch,
            first_forward=world.ranks[0].forward + 50,
            phase="decode",
            counts=counts,
            routed=np.array([counts.sum() + rank], dtype=np.int64),
            tokens=np.ones(1, dtype=np.int32),
            dummy=np.zeros(1, dtype=np.bool_),
        )
        world.feed(Received(world.peer(rank), 10**6, report))
    assert group.frozen
    settled = world.settled
    world.run(3000)
    assert world.settled <= settled + 1, "an epoch past its decision may end, no other begins"
    assert any(isinstance(e, Note) and e.event == "placement frozen" for e in world.log)


def fail_policy(world: World, times: int) -> None:
    for _ in range(times):
        for _ in range(4000):
            if world.proposals:
                break
            world.run(1)
        ask = world.proposals.popleft()
        world.feed(PolicyFailed(ask.request, "raised", "Traceback: no"))


class Unanswered(Logged):
    """Nobody answers for the policy but the test."""

    def answer_policy(self) -> None:
        """Leave the question where it is."""
        self.tick()


def test_three_failures_suspend_the_policy_until_it_is_changed() -> None:
    world = Unanswered(seed=2)
    fail_policy(world, 3)
    node = here(world)
    assert node.statistics().suspended
    world.run(4000)
    assert not world.proposals
    events = [e.event for e in world.log if isinstance(e, Note)]
    assert events.count("policy failed") == 3
    assert events.count("policy suspended, hold takes over") == 1
    kept = [e for e in world.effects if isinstance(e, RememberFault)]
    assert [fault.outcome for fault in kept] == ["raised"] * 3
    world.feed(Reconfigured(Settings(QUICK.balance, QUICK.epoch, policy=PolicySettings("other"))))
    assert not node.statistics().suspended
    world.run(4000)
    assert world.proposals
    assert world.proposals[0].policy == "other"


def test_an_invalid_proposal_is_refused_whole() -> None:
    world = Unanswered(seed=2)
    for _ in range(4000):
        if world.proposals:
            break
        world.run(1)
    ask = world.proposals.popleft()
    rows = ask.current.slots.copy()
    rows[0, 0, 0] = 99
    world.feed(PolicyAnswered(ask.request, rows, 0.1))
    ended = [e for e in world.log if isinstance(e, CycleEnded)]
    assert ended[-1].outcome == "failed"
    assert "layer 0, rank 0, slot 0" in ended[-1].reason
    (kept,) = (e for e in world.effects if isinstance(e, RememberFault))
    assert (kept.policy, kept.outcome) == (QUICK.policy.name, "invalid")
    assert "layer 0, rank 0, slot 0" in kept.detail
    assert not any(isinstance(e, Send) and isinstance(e.message, m.Prepare) for e in world.effects)


def test_late_answers_of_a_policy_match_nothing() -> None:
    node = Node(QUICK)
    assert node.step(PolicyAnswered(7, np.zeros((1, 1, 1)), 0.1)) == []


def test_only_one_question_at_a_time() -> None:
    world = Unanswered(seed=3)
    world.run(6000)
    asked = [e for e in world.effects if isinstance(e, AskPolicy)]
    assert len(asked) == 1


def test_stop_without_an_epoch_is_at_once() -> None:
    node = Node(QUICK)
    node.step(Stopping())
    assert Stop() in node.step(Tick(1.0))


def test_time_does_not_go_back() -> None:
    node = Node(QUICK)
    node.step(Tick(5.0))
    with pytest.raises(LocalProtocolError, match="time went back"):
        node.step(Tick(4.0))


def test_a_member_of_another_shape_is_refused_by_name() -> None:
    world = running()
    hello = world.ranks[1].hello(1)
    wrong = m.Hello(**{f: getattr(hello, f) for f in hello.__slots__} | {"layers": 9})
    effects = here(world).step(Received(b"0.99", 1, wrong))
    refused = [e.message for e in effects if isinstance(e, Send)]
    assert len(refused) == 1
    assert isinstance(refused[0], m.Refused)
    assert "layers" in refused[0].reason


def test_a_new_life_of_a_group_is_led_under_a_later_term() -> None:
    """Its ranks know of none, and the state directory only of those before the daemon's start."""
    world = running()
    before = here(world).balancers["sim"].group.term
    world.restart_group()
    world.settle()
    assert here(world).balancers["sim"].group.term > before
