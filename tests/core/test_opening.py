"""The first moves of a life: back to the placement of before, or copies spread; else none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from eplbd.core.balancer import Balancer
from eplbd.core.events import AskPolicy, CycleEnded, Effect, EpochEnded, Note, PolicyAnswered
from eplbd.core.opening import STORED
from eplbd.core.placement import Placement, par, rank_load
from eplbd.core.settings import Settings
from tests.core.arrangements import holds
from tests.sim.quick import QUICK
from tests.sim.rank import SimRank
from tests.sim.world import World


def opening(how: str, mode: str = "dynamic", phase: str = "all") -> Settings:
    balance = replace(QUICK.balance, opening=how, mode=mode, phase=phase)
    return replace(QUICK, balance=balance)


class Asked(World):
    """A world that keeps the questions, whose policy learns nothing and moves nothing."""

    def __post_init__(self) -> None:
        self.asked: list[AskPolicy] = []
        super().__post_init__()

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, AskPolicy):
            self.asked.append(effect)
        super().perform(effect)

    def answer_policy(self) -> None:
        ask = self.proposals.popleft()
        self.feed(PolicyAnswered(ask.request, ask.current.slots, 0.01))

    def noted(self, event: str) -> list[Note]:
        return [e for e in self.log if isinstance(e, Note) and e.event == event]

    def authors(self) -> list[str]:
        return [e.policy for e in self.log if isinstance(e, EpochEnded) and e.outcome == "settled"]

    def until(self, what: Callable[[], bool]) -> None:
        for _ in range(4000):
            if what():
                return
            self.run(20)
        raise AssertionError(self.story())

    def run_until(self, event: str) -> None:
        self.until(lambda: bool(self.noted(event)))


GOING = "going back to the stored placement"
NOT_TAKEN = "stored placement not taken up"
EVEN = "no heat yet, taken to be even"


def learned(world: World) -> Placement:
    """Let a group of this world settle somewhere, and end its life and the daemon's."""
    world.settle()
    kept = world.stored["sim"]
    world.kill_daemon()
    world.restart_group()
    world.log.clear()
    return kept.placement


def reborn(before: World, settings: Settings) -> Asked:
    """A world with another group's past, in which nobody plans anything."""
    world = Asked(seed=before.seed, settings=settings)
    world.kill_daemon()
    world.restart_group()
    world.stored = dict(before.stored)
    world.start_daemon()
    return world


@pytest.mark.parametrize("seed", range(3))
def test_a_new_life_goes_back_before_any_heat(seed: int) -> None:
    past = World(seed=seed)
    placement = learned(past)
    world = reborn(past, opening("stored"))
    world.run_until(GOING)
    world.until(lambda: any(isinstance(e, CycleEnded) for e in world.log))
    assert all(holds(rank.map) == holds(placement) for rank in world.ranks)
    assert set(world.authors()) == {STORED}
    ended = next(e for e in world.log if isinstance(e, CycleEnded))
    assert (ended.policy, ended.outcome) == (STORED, "applied")
    assert not world.noted(EVEN)


def test_a_living_daemon_remembers_too() -> None:
    world = World(seed=3)
    world.settle()
    world.restart_group()
    world.log.clear()
    world.settle()
    events = [e.event for e in world.log if isinstance(e, Note)]
    assert events.index("group restarted") < events.index(GOING)


def test_a_life_that_goes_on_is_not_turned_back() -> None:
    """The daemon restarts with a record that is older than what the ranks have settled since."""
    world = World(seed=3)
    world.settle()
    kept = world.stored["sim"]
    world.stored["sim"] = replace(kept, placement=Placement.linear(2, 5, 3, 3))
    world.kill_daemon()
    world.log.clear()
    world.start_daemon()
    world.settle()
    events = [e.event for e in world.log if isinstance(e, Note)]
    assert "group ready" in events
    assert GOING not in events


def test_where_the_engine_already_stands_there_nothing_moves() -> None:
    past = World(seed=1)
    learned(past)
    kept = past.stored["sim"]
    past.stored["sim"] = replace(kept, placement=past.ranks[0].map)
    world = reborn(past, opening("stored"))
    world.run_until("group ready")
    world.run(2000)
    assert not world.noted(GOING)
    assert not world.noted(NOT_TAKEN)
    assert not world.authors()


def changed(past: World, **fields: object) -> None:
    kept = past.stored["sim"]
    assert kept.likeness is not None
    likeness = replace(kept.likeness, **fields)  # type: ignore[arg-type]
    past.stored["sim"] = replace(kept, likeness=likeness)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layout_digest": "other"}, "of another model"),
        ({"node_of": (0, 1, 1)}, "on other nodes"),
        ({"phase": "decode"}, "planned for phase decode, now it is all"),
    ],
)
def test_what_is_of_another_kind_is_not_taken_up(fields: dict[str, object], words: str) -> None:
    past = World(seed=2)
    learned(past)
    changed(past, **fields)
    world = reborn(past, opening("stored"))
    world.run_until(NOT_TAKEN)
    (note,) = world.noted(NOT_TAKEN)
    assert words in str(note.fields["reason"])
    world.run(1000)
    assert not world.authors()


def test_nor_what_has_another_shape() -> None:
    past = World(seed=2)
    learned(past)
    kept = past.stored["sim"]
    past.stored["sim"] = replace(kept, placement=Placement.linear(2, 5, 3, 2))
    world = reborn(past, opening("stored"))
    world.run_until(NOT_TAKEN)
    assert "shape [2, 3, 2]" in str(world.noted(NOT_TAKEN)[0].fields["reason"])


def test_nor_a_record_that_cannot_be_served() -> None:
    past = World(seed=2)
    learned(past)
    kept = past.stored["sim"]
    lost = np.zeros_like(kept.placement.slots)
    past.stored["sim"] = replace(kept, placement=Placement(lost, 5))
    world = reborn(past, opening("stored"))
    world.run_until(NOT_TAKEN)
    assert "in no slot" in str(world.noted(NOT_TAKEN)[0].fields["reason"])


@pytest.mark.parametrize(("how", "mode"), [("none", "dynamic"), ("stored", "hold")])
def test_only_where_the_operator_wants_it(how: str, mode: str) -> None:
    past = World(seed=2)
    learned(past)
    world = reborn(past, opening(how, mode))
    world.run_until("group ready")
    world.run(2000)
    assert not world.authors()
    assert not world.noted(EVEN)


# --- copies spread ------------------------------------------------------------------------------


class Idle(Asked):
    """An engine without traffic, until `idle` is taken from it: no forward is run."""

    idle = True

    def may_forward(self, rank: int) -> bool:
        return not self.idle and super().may_forward(rank)


class Unheard(Idle):
    """An engine with traffic, of which nothing is heard until `heard`."""

    idle = heard = False

    def _report_heat(self, me: SimRank) -> None:
        if self.heard:
            super()._report_heat(me)


def test_without_heat_the_policy_is_asked_as_if_it_were_even() -> None:
    world = Idle(seed=5, settings=opening("spread"))
    world.run_until(EVEN)
    world.run(200)
    (ask,) = world.asked
    assert (ask.heat.steps == ask.heat.steps.flat[0]).all()
    assert ask.heat.steps.shape[1:] == (2, 5)
    load = rank_load(ask.current, ask.heat.steps)
    assert par(load).mean() > 1, "the engine's own layout is uneven under it"


def test_only_once_and_never_where_forwards_go_on() -> None:
    world = Idle(seed=5, settings=opening("spread"))
    world.run_until(EVEN)
    world.run(3000)
    assert len(world.asked) == 1
    balance = replace(QUICK.balance, opening="spread", interval_s=2.0)
    busy = Unheard(seed=5, settings=replace(QUICK, balance=balance))
    busy.until(lambda: busy.now > 20)
    assert not busy.noted(EVEN), "heat is about to come"
    busy.heard = True
    busy.until(lambda: bool(busy.asked))
    busy.heard, busy.idle = False, True
    busy.until(lambda: busy.now > 60)
    assert not busy.noted(EVEN), "there has been some"


class Moving(Idle):
    """With a policy that moves."""

    answer_policy = World.answer_policy


def test_nobody_is_judged_by_heat_that_was_assumed() -> None:
    world = Moving(seed=6, settings=opening("spread"))
    world.run_until(EVEN)
    world.idle = False
    world.until(lambda: any(isinstance(e, CycleEnded) for e in world.log))
    ended = next(e for e in world.log if isinstance(e, CycleEnded))
    assert ended.outcome == "applied"
    assert ended.moves
    assert (ended.gain_realised, here(world).gains.broken) == (0.0, 0)


def here(world: World) -> Balancer:
    assert world.node is not None
    return world.node.balancers["sim"]
