"""Every alarm: when it is raised, that it is said once, and when it has passed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eplbd.core import messages as m
from eplbd.core.alarms import Alarm, AlarmName
from eplbd.core.bubble import Pacer
from eplbd.core.cluster import Address, Led
from eplbd.core.cycle import Stage, slowest_load
from eplbd.core.epoch import Phase as EpochPhase
from eplbd.core.events import (
    CycleEnded,
    Event,
    Note,
    PolicyAnswered,
    PolicyFailed,
    Received,
    Reconfigured,
    Tick,
)
from eplbd.core.node import Node
from eplbd.core.placement import Placement
from eplbd.core.settings import AlarmSettings, PolicySettings, Settings
from tests.hellos import hello as plain
from tests.sim.quick import QUICK
from tests.sim.world import World

SOON = AlarmSettings(no_worker_s=5.0, heat_stale_s=5.0, epoch_overdue_s=5.0, losing_cycles=0)


HERE, THERE = (Address(f"tcp://{name}:1", f"key {name}") for name in "ab")


def watched(**alarms: object) -> Settings:
    balance = replace(QUICK.balance, opening="none")
    return replace(QUICK, balance=balance, alarms=replace(SOON, **alarms))  # type: ignore[arg-type]


class Watched(World):
    """A world in which time can pass without anything else happening."""

    idle = False
    """Whether the engine runs no forward."""
    mute: type[m.FromAgent] | None = None
    """Messages that get lost."""
    phase = "decode"

    def may_forward(self, rank: int) -> bool:
        return not self.idle and super().may_forward(rank)

    def collect(self, rank: int) -> None:
        box = self.ranks[rank].outbox
        for i, said in enumerate(box):
            if isinstance(said, m.HeatReport):
                box[i] = replace(said, phase=self.phase)
        kept = [said for said in box if type(said) is not self.mute]
        box.clear()
        box.extend(kept)
        super().collect(rank)

    @property
    def here(self) -> Node:
        assert self.node is not None
        return self.node

    def active(self) -> dict[AlarmName, Alarm]:
        return {alarm.name: alarm for alarm in self.here.alarms.active}

    def said(self, alarm: AlarmName) -> list[str]:
        return [e.event for e in self.log if isinstance(e, Note) and e.fields.get("alarm") == alarm]

    def until(self, what: Callable[[], bool]) -> None:
        for _ in range(6000):
            if what():
                return
            self.run(20)
        raise AssertionError(f"{self.active()}\n{self.story()}")

    def last(self, seconds: float) -> None:
        """Let so much time pass, with everything else that happens in it."""
        end = self.now + seconds
        self.until(lambda: self.now >= end)

    def raised(self, alarm: AlarmName) -> Alarm:
        self.until(lambda: alarm in self.active())
        assert self.said(alarm) == ["alarm raised"]
        return self.active()[alarm]

    def cleared(self, alarm: AlarmName) -> None:
        self.until(lambda: alarm not in self.active())
        assert self.said(alarm) == ["alarm raised", "alarm cleared"]


def running(settings: Settings | None = None, seed: int = 1) -> Watched:
    world = Watched(seed=seed, settings=settings or watched())
    world.settle()
    return world


def test_a_group_that_serves_raises_none() -> None:
    world = running()
    world.last(30)
    assert not world.active()
    assert not [e for e in world.log if isinstance(e, Note) and "alarm" in e.fields]


def test_no_worker() -> None:
    """From the start of the daemon, and again when all have gone; not while one is there."""
    world = Watched(seed=1, settings=watched())
    node = Node(watched())
    world.node = node
    while world.now < 4.5:
        world.now += 0.1
        world.feed(Tick(world.now))
    assert not world.active()
    while world.now < 6:
        world.now += 0.1
        world.feed(Tick(world.now))
    alarm = world.active()[AlarmName.NO_WORKER]
    assert "the engine does not run" in alarm.reason
    assert alarm.group == ""
    world.settle()
    world.cleared(AlarmName.NO_WORKER)
    assert world.said(AlarmName.NO_WORKER) == ["alarm raised", "alarm cleared"]
    world.log.clear()
    for me in world.ranks:
        me.stopped = True
    world.idle = True
    world.raised(AlarmName.NO_WORKER)
    assert AlarmName.RANK_MISSING not in world.active(), "there is one reason, and it is said once"


def test_a_rank_is_missing() -> None:
    world = running()
    world.ranks[2].stopped = True
    alarm = world.raised(AlarmName.RANK_MISSING)
    assert "ranks [2] are missing" in alarm.reason
    assert alarm.group == "sim"
    world.ranks[2].stopped = False
    world.cleared(AlarmName.RANK_MISSING)


def test_heat_is_stale_only_while_forwards_go_on() -> None:
    world = running()
    world.mute, world.idle = m.HeatReport, True
    world.last(30)
    assert AlarmName.HEAT_STALE not in world.active(), "an engine without traffic has no heat"
    world.idle = False
    alarm = world.raised(AlarmName.HEAT_STALE)
    assert "no step of heat is complete" in alarm.reason
    world.mute = None
    world.cleared(AlarmName.HEAT_STALE)


def test_heat_of_another_phase_alone_is_stale_too() -> None:
    balance = replace(watched().balance, phase="decode")
    world = running(replace(watched(), balance=balance))
    assert world.here.balancers["sim"].ledger is not None
    world.phase = "mixed"
    alarm = world.raised(AlarmName.HEAT_STALE)
    assert "none of balance.phase = decode" in alarm.reason
    world.phase = "decode"
    world.cleared(AlarmName.HEAT_STALE)


def leader_phase(world: Watched) -> EpochPhase | None:
    leader = world.here.balancers["sim"].group.leader
    return leader.phase if leader else None


def test_an_epoch_that_waits_for_forwards_is_not_overdue() -> None:
    """Armed sixteen forwards ahead of an engine without traffic it waits, perhaps for hours."""
    world = running()
    world.until(lambda: leader_phase(world) is EpochPhase.COMMIT)
    leader = world.here.balancers["sim"].group.leader
    assert leader is not None
    assert max(rank.forward for rank in world.ranks) < leader.at
    world.idle = True
    world.last(60)
    assert leader_phase(world) is EpochPhase.COMMIT
    assert not world.active()
    world.idle = False
    world.settle()


def test_an_epoch_that_waits_for_a_rank_is_overdue() -> None:
    """Its forwards went on, and it cannot be heard that it committed."""
    world = running()
    world.mute = m.Committed
    alarm = world.raised(AlarmName.EPOCH_OVERDUE)
    assert leader_phase(world) is EpochPhase.COMMIT
    assert "in commit and waits for ranks [0, 1, 2]" in alarm.reason
    world.mute = None
    world.cleared(AlarmName.EPOCH_OVERDUE)


def test_frozen() -> None:
    world = running()
    world.here.balancers["sim"].group.freeze("ranks hold other maps: {1: 'x'}")
    alarm = world.raised(AlarmName.PLACEMENT_FROZEN)
    assert alarm.reason == "ranks hold other maps: {1: 'x'}"
    world.restart_group()
    world.cleared(AlarmName.PLACEMENT_FROZEN)


def test_latency() -> None:
    world = running()
    pacer: Pacer = world.here.balancers["sim"].pacer
    for _ in range(10):
        pacer.observe(forward_s=0.01, staging_forward_s=0.03)
        pacer.pace()
    assert "3.000 times as long" in world.raised(AlarmName.LATENCY).reason
    pacer.observe(forward_s=0.01, staging_forward_s=0.01)
    pacer.pace()
    world.cleared(AlarmName.LATENCY)


class Failing(Watched):
    def answer_policy(self) -> None:
        self.feed(PolicyFailed(self.proposals.popleft().request, "timeout", "10 s"))


def test_a_policy_that_fails_is_suspended() -> None:
    world = Failing(seed=2, settings=watched())
    alarm = world.raised(AlarmName.POLICY_SUSPENDED)
    assert "incremental: 3 failures in a row, the last: timeout" in alarm.reason
    other = replace(watched(), policy=PolicySettings("other"))
    world.feed(Reconfigured(other))
    world.cleared(AlarmName.POLICY_SUSPENDED)


class Fickle(Watched):
    """Traffic turns as soon as the policy has answered, towards what the map before was good for.

    The policy is honest: of many placements it proposes the best for what it was shown.
    """

    turned = False
    fickle = True

    def heat(self) -> NDArray[np.int32]:
        hot = 4 if self.turned else 0
        heat = np.full(self.shape.experts, 10, dtype=np.int32)
        heat[[hot, (hot + 1) % 5]] = 200
        return heat

    def answer_policy(self) -> None:
        ask = self.proposals.popleft()
        rows = [np.stack([self.shuffled()] * self.shape.layers) for _ in range(40)]
        best = min(rows, key=lambda row: slowest_load(Placement(row, 5), ask.heat.steps))
        self.feed(PolicyAnswered(ask.request, best, 0.01))
        self.turned ^= self.fickle

    def judged(self) -> list[CycleEnded]:
        """Rebalances whose gain was measured."""
        return [e for e in self.log if isinstance(e, CycleEnded) and e.gain_realised]

    def applied(self) -> list[CycleEnded]:
        return [e for e in self.log if isinstance(e, CycleEnded) and e.outcome == "applied"]


def fickle() -> Fickle:
    balance = replace(QUICK.balance, opening="none", interval_s=3.0, min_gain=0.01, horizon_s=1e3)
    alarms = replace(SOON, losing_cycles=3)
    return Fickle(seed=3, settings=replace(QUICK, balance=balance, alarms=alarms))


def test_moves_that_fall_short_three_times_suspend_the_policy() -> None:
    world = fickle()
    alarm = world.raised(AlarmName.POLICY_SUSPENDED)
    assert "3 rebalances of group sim in a row fell short of their gain" in alarm.reason
    assert len(world.judged()) >= 3
    assert all(e.gain_realised < 0.5 * e.gain_predicted for e in world.judged()[-3:])
    events = [e.event for e in world.log if isinstance(e, Note)]
    assert events.count("policy suspended, hold takes over") == 1
    world.last(20)
    assert not world.proposals
    world.here.trust()
    world.fickle = False
    world.cleared(AlarmName.POLICY_SUSPENDED)


class Fading(Fickle):
    """Traffic that is uneven while somebody plans, and even as soon as weights move."""

    def heat(self) -> NDArray[np.int32]:
        led = self.node.balancers.get("sim") if self.node else None
        stage = led.cycle.stage if led and led.cycle else Stage.RESTING
        if stage in (Stage.MOVING, Stage.MEASURING):
            return np.full(self.shape.experts, 50, dtype=np.int32)
        return super().heat()


def test_moves_whose_reason_went_away_do_not() -> None:
    """Nothing is gained, and nothing would have been lost without them: nobody's fault."""
    world = Fading(seed=3, settings=fickle().settings)
    losing = world.here.settings.alarms.losing_cycles

    def fell_short() -> bool:
        newest = world.applied()[-losing:]
        short = [e.gain_realised < 0.5 * e.gain_predicted for e in newest]
        return len(short) == losing and all(short)

    world.until(fell_short)
    assert not world.here.questions.breaker.suspended


def test_moves_that_bring_what_they_promise_do_not() -> None:
    """The same engine, policy and loads, and traffic that stays until the moves are judged."""
    world = fickle()
    world.fickle = False
    for turns in range(1, 4):
        world.turned = not world.turned
        world.until(lambda turns=turns: len(world.judged()) >= turns)  # type: ignore[misc]
    assert all(e.gain_realised > 0.5 * e.gain_predicted > 0.0 for e in world.judged())
    assert not world.active()
    assert not world.here.questions.breaker.suspended


def test_a_leader_that_is_not_heard_is_an_alarm_until_it_is() -> None:
    node = Node(replace(Settings(), alarms=SOON), HERE)
    hello = plain(rank=1, ranks=2, leader=THERE.endpoint, leader_key=THERE.key)
    silence_s = Settings().session.silence_s

    def alarms(now: float, *events: Event) -> list[Alarm]:
        """At `now`, with a rank that lives."""
        for event in (Tick(now), Received(b"rank 1", 1, m.Pulse(1)), *events):
            node.step(event)
        return [alarm for alarm in node.alarms.active if alarm.name is AlarmName.LEADER_LOST]

    heard = Led(THERE, ())
    node.step(Received(b"rank 1", 1, hello))
    alarms(0.0, heard)
    quiet = [alarms(float(now), heard) for now in range(1, 9)]
    lost = [alarms(float(now)) for now in range(9, 9 + 20)]
    assert not any(quiet)
    first = next(i for i, found in enumerate(lost) if found)
    assert silence_s + SOON.no_worker_s - 2 <= first <= silence_s + SOON.no_worker_s + 2
    assert all(lost[first:])
    (alarm,) = lost[-1]
    assert (alarm.group, THERE.endpoint in alarm.reason) == ("g", True)
    alarms(29.0, heard)
    assert not alarms(30.0, heard)


def test_ranks_that_have_gone_miss_no_leader() -> None:
    node = Node(replace(Settings(), alarms=SOON), HERE)
    node.step(
        Received(b"rank 1", 1, plain(rank=1, ranks=2, leader=THERE.endpoint, leader_key=THERE.key))
    )
    for now in range(30):
        node.step(Tick(float(now)))
        assert AlarmName.LEADER_LOST not in {alarm.name for alarm in node.alarms.active}
