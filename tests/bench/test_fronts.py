"""The comparison with peers: its judgements by hand, and a run on recorded heat, ours alone."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.bench.fronts import ours
from tests.bench.fronts.bounded import bounded
from tests.bench.fronts.claims import Case, claims, exact
from tests.bench.fronts.rows import Kept, Row
from tests.bench.fronts.small import Problem, solve
from tests.bench.fronts.verdict import Duel, Verdict, best, duel, fewest, judge
from tests.bench.fronts.yardstick import Yardstick


def row(policy: str, par: float, moves: float, error: str = "") -> Row:
    return Row(load="here", policy=policy, par=par, moves=moves, error=error)


FRONT = [row("wide", 1.10, 20), row("narrow", 1.15, 5), row("still", 1.50, 0), row("x", 0, 0, "no")]


@pytest.mark.parametrize(
    ("par", "moves", "verdict"),
    [
        (1.20, 30, Verdict.DOMINATED),  # better and cheaper
        (1.10, 30, Verdict.DOMINATED),  # the same, cheaper
        (1.12, 20, Verdict.DOMINATED),  # better, at the same price
        (1.10, 20, Verdict.TIE),  # the same point
        (1.096, 20, Verdict.TIE),  # as good as no table would show
        (1.10, 10, Verdict.MISSED),  # as good, dearer
        (1.05, 30, Verdict.MISSED),  # nobody is as good
        (1.40, 0, Verdict.MISSED),  # nobody is as cheap
    ],
)
def test_a_point_is_judged_by_balance_and_by_moves(
    par: float, moves: float, verdict: Verdict
) -> None:
    assert judge(row("peer", par, moves), FRONT).verdict is verdict


def test_a_row_without_figures_is_nobodys_point() -> None:
    assert best(FRONT, 4.0) == FRONT[2]
    assert fewest(FRONT, 1.2) == FRONT[1]
    assert best(FRONT[3:], 100.0) is None
    assert fewest(FRONT, 1.0) is None


@pytest.mark.parametrize(
    ("par", "moves", "found"),
    [
        (1.20, 30, Duel.DOMINATES),
        (1.10, 20, Duel.TIE),
        (1.05, 30, Duel.TRADE),
        (1.20, 10, Duel.TRADE),
        (1.05, 20, Duel.BEATEN),
        (1.10, 10, Duel.BEATEN),
    ],
)
def test_one_setting_may_be_beaten(par: float, moves: float, found: Duel) -> None:
    assert duel(row("peer", par, moves), FRONT[0]) is found


def test_a_kept_row_is_found_again_under_its_key(tmp_path: Path) -> None:
    path, measured = tmp_path / "kept" / "rows.jsonl", row("peer", 1.0, 2.0)
    assert Kept(path).find("here", "peer", "a", 1.0) is None
    kept = Kept(path).keep(measured, "a", 1.0)
    assert Kept(path).find("here", "peer", "a", 9.0) == kept
    assert Kept(path).find("here", "peer", "b", 1.0) is None


def test_what_was_cut_short_is_measured_again_under_a_longer_limit(tmp_path: Path) -> None:
    path, slow = tmp_path / "rows.jsonl", Row(load="here", policy="peer", too_slow=True)
    Kept(path).keep(slow, "a", 5.0)
    assert Kept(path).find("here", "peer", "a", 5.0) is not None
    assert Kept(path).find("here", "peer", "a", 9.0) is None


NOBODY = Row(load="here", policy="peer")


def test_a_peer_that_answers_is_measured() -> None:
    assert bounded(lambda: row("peer", 1.2, 3.0), NOBODY, 100.0) == row("peer", 1.2, 3.0)


def spin() -> Row:
    while True:
        pass


@pytest.mark.slow
def test_a_peer_that_never_answers_is_stopped_and_named() -> None:
    stopped = bounded(spin, NOBODY, 1.0)
    assert stopped.error == "did not answer in 1 s"
    assert stopped.too_slow


def test_a_peer_that_waits_for_ever_is_stopped_by_the_clock() -> None:
    def wait() -> Row:
        threading.Event().wait()
        return NOBODY

    assert bounded(wait, NOBODY, 0.01).too_slow


def test_a_peer_that_crashes_ends_its_own_process() -> None:
    def die() -> Row:
        os.kill(os.getpid(), signal.SIGKILL)
        return NOBODY

    assert bounded(die, NOBODY, 100.0).error == "died of signal 9"
    assert "status" in bounded(lambda: sys.exit(3), NOBODY, 100.0).error


def test_claims_name_what_they_are_held_against() -> None:
    peers = [row("vllm", 1.12, 100), row("good", 1.10, 90), row("broken", 0, 0, "IndexError")]
    case = Case("trace", recorded=True, peers=peers, ours=FRONT)
    fifth, tenth = claims([case])
    assert fifth.holds
    assert "good (1.100)" in fifth.text
    assert not tenth.holds
    assert "narrow" in tenth.found


def test_small_problems_are_held_against_the_optimum_and_the_best_peer() -> None:
    toy = Problem("toy", (4, 3, 2, 1), 2, 3, least=5.0)
    answers = [
        solve(toy, name, ours.entrant(ours.Point(policy), []))
        for name, policy in [("incremental", "greedy"), ("peer", "random")]
    ]
    optimum, beside = exact(answers, ["peer"])
    assert optimum.holds == (answers[0].hottest == toy.least)
    assert beside.holds == (answers[0].hottest <= answers[1].hottest)
    assert all(answer.excess >= 0 for answer in answers)
    assert [claim.text for claim in exact(answers, [])] == [optimum.text]


def test_the_sweep_starts_with_the_default_and_names_are_unique() -> None:
    points = ours.points()
    assert points[0] == ours.Point("incremental")
    assert len({point.name for point in points}) == len(points)


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first run compiles
def test_repair_dominates_a_fresh_plan_on_recorded_heat(
    shared_traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (shared_traces.parent / "bench").is_dir():
        pytest.skip(f"no bench beside {shared_traces}: set EPLBD_SHARED to the folder of both")
    monkeypatch.setenv("EPLB_PEERS", str(tmp_path))  # nobody's
    yardstick = Yardstick(shared_traces.parent, tmp_path)
    assert yardstick.peers() == []
    loads = {load.name: load for load in yardstick.loads(everything=False)}
    load = loads["gptoss20b_mmlu_drift"]
    built = load.build()
    for name in ("incremental", "greedy"):
        yardstick.enter(name, ours.entrant(ours.Point(name), yardstick.cpu_s))
    static, fresh, repaired = (
        yardstick.run(name, load.name, built) for name in ("static", "greedy", "incremental")
    )
    for one in (static, fresh, repaired):
        assert not one.error, one
        print(f"\n{one.policy}: PAR {one.par:.3f}, {one.moves:.1f} moves, {one.cpu_ms:.1f} ms CPU")
    assert static.moves == 0
    assert repaired.cpu_ms > 0
    assert judge(fresh, [repaired]).verdict is Verdict.DOMINATED
    assert repaired.moves < fresh.moves
    assert repaired.par - 1 < (static.par - 1) / 2
