"""The comparison with peers: its judgements by hand, and a run on recorded heat, ours alone."""

from pathlib import Path

import pytest

from tests.bench.fronts import ours
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


def test_a_kept_row_is_measured_once_and_anew_under_another_key(tmp_path: Path) -> None:
    calls = []

    def measure() -> Row:
        calls.append(1)
        return Row(load="here", policy="peer", par=1.0, too_slow=len(calls) == 1)

    path = tmp_path / "kept" / "rows.jsonl"
    Kept(path).get(measure, "here", "peer", "a", 1.0)
    assert Kept(path).get(measure, "here", "peer", "a", 1.0).too_slow
    assert len(calls) == 1
    assert not Kept(path).get(measure, "here", "peer", "a", 9.0).too_slow  # had been cut short
    Kept(path).get(measure, "here", "peer", "a", 99.0)
    assert len(calls) == 2
    Kept(path).get(measure, "here", "peer", "b", 9.0)
    assert len(calls) == 3


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
        yardstick.run(name, load.name, built, 60.0) for name in ("static", "greedy", "incremental")
    )
    for one in (static, fresh, repaired):
        assert not one.error, one
        print(f"\n{one.policy}: PAR {one.par:.3f}, {one.moves:.1f} moves, {one.cpu_ms:.1f} ms CPU")
    assert static.moves == 0
    assert repaired.cpu_ms > 0
    assert judge(fresh, [repaired]).verdict is Verdict.DOMINATED
    assert repaired.moves < fresh.moves
    assert repaired.par - 1 < (static.par - 1) / 2
