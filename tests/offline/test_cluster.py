"""A cluster in one process: what holds under faults, what a seed decides, what breaks a law."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from eplbd.cli import main
from eplbd.core import agent_events as ae
from eplbd.core.agent import Agent
from eplbd.core.epoch import Phase
from eplbd.core.leader import EpochLeader
from eplbd.core.placement import Placement, validate
from eplbd.core.settings import AlarmSettings, BalanceSettings, Settings
from eplbd.offline.cluster.command import Options, run
from eplbd.offline.cluster.counters import BLOCK_STEPS, Counters
from eplbd.offline.cluster.figures import Watch
from eplbd.offline.cluster.laws import BrokenLawError
from eplbd.offline.cluster.loop import Loop
from eplbd.offline.cluster.memory import held_bytes
from eplbd.offline.cluster.network import Cut, Network, Quality
from eplbd.offline.cluster.nudge import Nudge
from eplbd.offline.cluster.traffic import Traffic
from eplbd.offline.cluster.world import Plan, Restart, World
from eplbd.probes import problems

BUSY = Settings(
    balance=BalanceSettings(
        interval_s=1.0,
        window_steps=64,
        min_steps=16,
        par_trigger=1.0,
        min_gain=-1e9,
        horizon_s=1e9,
        pause_s=0.1,
        opening="none",
    ),
    alarms=AlarmSettings(losing_cycles=0),
)
"""A rebalance a second, whatever it brings."""

SMALL = Plan(ranks=64, layers=2, experts=64, slots=3, tokens=8, settings=BUSY)

ROUGH = replace(
    SMALL,
    quality=Quality(loss=0.05, repetition=0.05),
    cuts=(Cut(9.0, 14.0, frozenset({3})),),
    restarts=(Restart(16.3, 0), Restart(20.1, 5)),
    skew=0.01,
)
"""Eight nodes: one is cut off, then the leader's daemon is killed, then a relay's."""

LAST_HARM_S = 21.1


# --- the whole ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_cluster_survives_loss_a_partition_and_restarts(seed: int) -> None:
    """Between forwards the engine and the ranks hold themselves to the laws; this is the end."""
    watch = Watch()
    world = World(replace(ROUGH, seed=seed), seen=watch.see)
    world.run(LAST_HARM_S)
    before = len(watch.settled_after)
    assert before, "nothing settled before the last harm"
    assert world.network.counts["cut"], "nothing was cut off"
    assert world.network.counts["lost"], "nothing was lost"
    while len(watch.settled_after) < before + 3:
        assert world.loop.now < 90, f"balancing does not resume: {watch.ended[-3:]}"
        world.run(1.0)
    world.rest()
    world.hold_to_laws()


@pytest.mark.slow
def test_without_faults_every_epoch_settles_at_its_first_arming() -> None:
    watch = Watch()
    world = World(SMALL, seen=watch.see)
    world.run(8.0)
    assert len(watch.ended) > 3
    assert {(end.outcome, end.attempts) for end in watch.ended} == {("settled", 1)}
    assert max(watch.settled_after) <= SMALL.settings.epoch.margin_forwards + 1
    assert world.engine.longest_wait_s == 0
    world.rest()
    world.hold_to_laws()


@pytest.mark.slow
def test_a_seed_decides_the_run() -> None:
    def story(seed: int) -> list[object]:
        watch = Watch()
        World(replace(ROUGH, seed=seed), seen=watch.see).run(8.0)
        return [(end.epoch, end.outcome, end.at, end.moves, end.reason) for end in watch.ended]

    told = story(3)
    assert told == story(3)
    assert told != story(4)


# --- what it notices ----------------------------------------------------------------------------


def commit_unasked(leader: EpochLeader, phase: Phase) -> None:
    """Confirm an arming that the register has not been asked about."""
    ENTER(leader, Phase.COMMIT if phase is Phase.DECIDE else phase)


ENTER, HAPPENED = EpochLeader._enter, Agent._happened  # noqa: SLF001


def never_ask(agent: Agent, event: ae.OfWork) -> None:
    """Leave a flip undecided that nobody confirmed."""
    if not isinstance(event, ae.Neared):
        HAPPENED(agent, event)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "method", "fault", "told"),
    [
        (EpochLeader, "_enter", commit_unasked, "runs under maps"),
        (Agent, "_happened", never_ask, "waits for rank"),
    ],
    ids=["commit without the register", "armed and never asking"],
)
def test_a_fault_breaks_a_law(
    machine: type, method: str, fault: object, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, method, fault)
    lossy = replace(SMALL, quality=Quality(loss=0.2))
    with pytest.raises(BrokenLawError, match=told):
        World(lossy).run(60.0)


# --- parts --------------------------------------------------------------------------------------


def test_a_network_keeps_order_and_counts_what_it_loses() -> None:
    loop = Loop()
    network = Network(loop, Quality(loss=0.2, repetition=0.1), (Cut(1.0, 2.0, frozenset({1})),), 0)
    came: list[int] = []
    for number in range(200):
        network.send(0, 1, lambda number=number: came.append(number))  # type: ignore[misc]
    loop.run(1.0)
    counts = network.counts
    assert sorted(set(came)) == [*dict.fromkeys(came)], "overtaken"
    assert len(came) == counts["sent"] + counts["repeated"]
    assert counts["sent"] + counts["lost"] == 200
    assert 0 < counts["lost"] < 100
    network.send(0, 1, lambda: came.append(-1))
    network.send(0, 0, lambda: came.append(-2))
    loop.run(2.0)
    assert (-1 in came, -2 in came, counts["cut"]) == (False, True, 1)


def test_counts_add_up_to_the_heat() -> None:
    placement = Placement.linear(3, 8, 4, 5)
    traffic, counters = Traffic(3, 8, 700, 1), Counters(placement, 10)
    heat = [traffic.step(number) for number in range(1, BLOCK_STEPS + 1)]
    full = [counters.record(step) for step in heat]
    assert full == [False] * (BLOCK_STEPS - 1) + [True]
    reports = counters.drain()
    assert [report.first_forward for report in reports] == [1] * 4
    found = np.zeros((BLOCK_STEPS, 3, 8), dtype=np.int64)
    for rank, report in enumerate(reports):
        for layer, slot in np.ndindex(3, 5):
            expert = placement.slots[layer, rank, slot]
            found[:, layer, expert] += report.counts[:, layer, slot]
    assert (found == np.stack(heat)).all()
    routed = sum(report.routed for report in reports)
    assert (routed == np.stack(heat).sum(axis=(1, 2))).all()
    assert counters.drain() == []


def test_the_stand_in_answers_validly() -> None:
    """It need not gain anything, as a policy must."""
    for problem in problems(large=False):
        current = problem.current
        answer = Nudge().propose(problem.heat, problem.topology, current, problem.budget)
        placed = validate(
            answer.slots,
            experts=current.experts,
            topology=problem.topology,
            layers=current.layers,
            allow_duplicates=current.has_duplicates,
        )
        assert problem.budget.allows(current, placed), problem.name


def test_memory_counts_arrays_once() -> None:
    array = np.zeros(1 << 16, dtype=np.uint8)
    alone = held_bytes([array])
    assert alone > 1 << 16
    views = held_bytes([array[:100], array[100:], memoryview(array.data)])
    assert views < alone + 2048


# --- the command --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_figures() -> None:
    small = "--cluster --ranks 16 --layers 2 --slots 3 --experts 16 --seconds 3 --json -"
    result = CliRunner().invoke(main, ["simulate", *small.split()])
    assert result.exit_code == 0, result.output
    row = json.loads(result.output)
    assert (row["ranks"], row["nodes"], row["epochs_aborted"]) == (16, 2, 0)
    assert 0 < row["leader_core"] < 1


@pytest.mark.slow
def test_the_command_draws_growth(tmp_path: Path) -> None:
    picture = tmp_path / "growth.svg"
    small = "--cluster --ranks 32 --layers 2 --slots 3 --experts 16 --seconds 3 --json -"
    result = CliRunner().invoke(main, ["simulate", *small.split(), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert [row["ranks"] for row in json.loads(result.output)] == [8, 16, 32]
    drawn = picture.read_text("utf-8")
    assert all(word in drawn for word in ("Processor time", "Longest turn", "Memory", "per rank"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--cluster trace", "for a TRACE"),
        ("trace --loss 0.1", "give --cluster"),
        ("--cluster --partition 3", "AT:SECONDS:NODE"),
        ("--cluster --partition 1:2:999", "nodes are 0 to"),
        ("--cluster --ranks 8 --experts 80", "do not fit"),
        ("--cluster --plot x.pdf", ".png or .svg"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(given: str, told: str) -> None:
    result = CliRunner().invoke(main, ["simulate", *given.split()])
    assert result.exit_code != 0
    assert told in result.output


@pytest.mark.nightly
@pytest.mark.skipif(not os.environ.get("EPLBD_NIGHTLY"), reason="nightly: takes minutes")
@pytest.mark.timeout(1800)
def test_a_thousand_ranks_are_led_by_half_a_core() -> None:
    """Processor time over simulated time: a busy machine is slower in it, but waits for nobody."""
    row = run(Options(seconds=20.0, interval_s=10.0))
    sys.stdout.write(json.dumps(row, indent=2))
    assert float(str(row["leader_core"])) < 0.5
    assert int(str(row["epochs_settled"])) > 2
    assert (row["attempts_max"], row["longest_wait_ms"]) == (1, 0)
    margin = int(str(row["margin_forwards"]))
    assert int(str(row["armed_to_settled_forwards_max"])) <= margin + 1
    assert int(str(row["leader_bytes"])) < 1 << 29
