"""Figures and verdict: what each figure is taken from, and everything that a run must not lack."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from eplbd.demo.record import STOPPED, Journal, LogLine, Record
from eplbd.demo.reports import Broke, Steps
from eplbd.demo.verdict import WARM_UP_STEPS, Circumstances, Figures, figures_of, judge

EVEN, SKEWED = [10, 10], [30, 10]
AROUND = Circumstances(
    dispatch="all-to-all",
    policy="greedy",
    layers=2,
    experts=8,
    seed=0,
    trace=None,
    seconds=10.0,
    setup_s=2.0,
)

PROMISED = {
    "par_before", "par_after", "epochs_settled", "epochs_aborted", "moves", "bytes_moved",
    "outputs_identical", "forward_ms_p50", "forward_ms_p50_without_hook", "forward_ms_p50_staging",
    "hook_us_p50", "hook_us_p99", "steps", "dispatch", "topics", "par_after_by_layer",
}  # fmt: skip


def steps(rank: int, first: int, count: int, **given: Any) -> Steps:  # noqa: ANN401 - any field
    """A report of two layers on two ranks: rank 0 has the first load of a layer, rank 1 the second.

    In layer 0 the twin is skewed to 1.5, in layer 1 both are even; live is even.
    """
    fields: dict[str, Any] = {
        "topics": ["code"] * count,
        "identical": [True] * count,
        "staging": [False] * count,
        "committed": [False] * count,
        "live_s": [0.052] * count,
        "twin_s": [0.050] * count,
        "hook_s": [20e-6] * count,
        "live_load": [[EVEN[rank], EVEN[rank]]] * count,
        "twin_load": [[SKEWED[rank], EVEN[rank]]] * count,
    }
    return Steps(rank=rank, first=first, **{**fields, **given})


def recorded(count: int, **given: Any) -> Record:  # noqa: ANN401 - any field
    """A record of `count` steps, fields given for both ranks."""
    record = Record(2)
    for rank in (0, 1):
        record.add(steps(rank, 0, count, **given))
    return record


def skewed(count: int, **given: Any) -> Record:  # noqa: ANN401 - any field
    """As `recorded`, but live is more uneven than the twin."""
    record = Record(2)
    for rank in (0, 1):
        record.add(steps(rank, 0, count, live_load=[[SKEWED[rank]] * 2] * count, **given))
    return record


def settled(epochs: int = 2) -> Journal:
    journal = Journal()
    for epoch in range(epochs):
        journal.take(
            LogLine("epoch ended", outcome="settled", epoch=epoch, moves=5, bytes=1_000, stall_s=0)
        )
    return journal


def figures(record: Record, journal: Journal | None = None, limit: int | None = None) -> Figures:
    return figures_of(record, journal or settled(), AROUND, limit)


# --- the record ---------------------------------------------------------------------------------


def test_a_step_is_complete_when_all_ranks_have_reported_it() -> None:
    record = Record(2)
    record.add(steps(0, 0, 4))
    record.add(steps(1, 2, 2))
    assert record.steps == []
    record.add(steps(1, 0, 2, topics=["prose"] * 2))
    assert [step.topic for step in record.steps] == ["code"] * 4
    assert record.steps[0].live_s.tolist() == [0.052, 0.052]
    np.testing.assert_allclose(record.steps[0].twin_par, [1.5, 1.0])
    np.testing.assert_allclose(record.steps[0].live_par, [1.0, 1.0])


def test_the_journal_tells_settled_aborted_and_given_up_apart() -> None:
    journal = settled(2)
    for reason in ("rank 1 was lost", "rank 1 was lost", STOPPED):
        journal.take(LogLine("epoch ended", outcome="aborted", reason=reason, moves=7, bytes=9))
    journal.take(LogLine("cycle ended", outcome="applied"))
    journal.take(LogLine("cycle ended", outcome="refused", reason="gain is small"))
    journal.take(LogLine("placement frozen", level="error", reason="forward 7"))
    found = figures(recorded(20), journal)
    assert (found.epochs_settled, found.epochs_aborted, found.epochs_cut) == (2, 2, 1)
    assert (found.moves, found.bytes_moved) == (10, 2_000)
    assert found.abort_reasons == {"rank 1 was lost": 2}
    assert found.cycles == {"applied": 1, "refused": 1}
    assert (found.frozen, found.last_refusal) == ("forward 7", "gain is small")


# --- figures ------------------------------------------------------------------------------------


def test_par_is_the_mean_over_layers_of_the_second_half() -> None:
    record = skewed(10)
    for rank in (0, 1):
        record.add(steps(rank, 10, 10))
    found = figures(record)
    assert found.par_before_by_layer == [1.5, 1.0]
    assert found.par_after_by_layer == [1.0, 1.0]
    assert (found.par_before, found.par_after) == (1.25, 1.0)


def test_only_the_steps_that_were_asked_for_are_judged_but_all_outputs_count() -> None:
    same = [True] * 24
    record = recorded(24, identical=[*same[:-1], False])
    found = figures(record, limit=20)
    assert (found.steps, found.steps_compared) == (20, 24)
    assert not found.outputs_identical
    assert (found.differing_steps, found.first_difference, found.last_difference) == (1, 23, 23)


def test_one_rank_suffices_to_differ() -> None:
    record = Record(2)
    record.add(steps(0, 0, 20))
    record.add(steps(1, 0, 20, identical=[i not in (4, 6) for i in range(20)]))
    found = figures(record)
    assert not found.outputs_identical
    assert (found.differing_steps, found.first_difference, found.last_difference) == (2, 4, 6)


def test_times_are_told_apart_by_what_went_on() -> None:
    count = WARM_UP_STEPS + 12
    staging = [i >= count - 4 for i in range(count)]
    committed = [i == count - 5 for i in range(count)]
    record = recorded(
        count,
        staging=staging,
        committed=committed,
        live_s=[9.0] * WARM_UP_STEPS + [0.052] * 8 + [0.080] * 4,
        twin_s=[9.0] * WARM_UP_STEPS + [0.050] * 8 + [0.060] * 4,
        hook_s=[400e-6 if flip else 20e-6 for flip in committed],
    )
    found = figures(record)
    assert (found.forward_ms_p50, found.forward_ms_p50_without_hook) == (52.0, 50.0)
    assert (found.forward_ms_p50_staging, found.twin_ms_p50_staging) == (80.0, 60.0)
    assert found.forward_ratio_p50 == 1.04
    assert (found.hook_us_p50, found.hook_us_p99, found.commit_us_p50) == (20.0, 20.0, 400.0)
    assert found.staging_steps == 4


def test_the_ratio_compares_the_slowest_ranks_step_by_step() -> None:
    """A machine that gets busy halfway slows both; the ratio does not notice."""
    record = Record(2)
    busy = [1.0] * 14 + [5.0] * 14
    for rank in (0, 1):
        slow = 1.1 if rank else 1.0
        live, twin = [0.05 * slow * b for b in busy], [0.05 * b for b in busy]
        record.add(steps(rank, 0, 28, live_s=live, twin_s=twin))
    assert figures(record).forward_ratio_p50 == 1.1


def test_what_was_not_measured_is_null() -> None:
    found = figures(Record(2), Journal())
    unknown = {name for name in found.__struct_fields__ if getattr(found, name) is None}
    assert {"par_before", "par_after", "forward_ms_p50", "hook_us_p99"} <= unknown
    assert figures(recorded(20)).forward_ms_p50_staging is None


def test_the_figures_travel_as_json_with_every_promised_name() -> None:
    found = judge(figures(recorded(20)))
    decoded = msgspec.json.decode(msgspec.json.encode(found))
    assert decoded.keys() >= PROMISED
    assert decoded["ok"] is True
    assert decoded["topics"] == ["code"]


# --- the verdict --------------------------------------------------------------------------------


def test_all_is_well() -> None:
    found = judge(figures(recorded(20)))
    assert found.ok
    assert found.verdict[:2] == [
        "OK: balanced while serving",
        "PAR 1.25 without moves, 1.00 with: the same 10 last steps on both placements",
    ]


@pytest.mark.parametrize(
    ("record", "journal", "around", "words"),
    [
        (Record(2), settled(), AROUND, "no step was taken"),
        (recorded(20, identical=[False] * 20), settled(), AROUND, "differ from the twin's in 20"),
        (recorded(20), Journal(), AROUND, "no epoch settled"),
        (recorded(20), Journal(refusal="too dear"), AROUND, "last rebalance: too dear"),
        (skewed(20), settled(), AROUND, "no cooler than without"),
        (recorded(20), replace(settled(), frozen="forward 9"), AROUND, "froze the placement"),
        (recorded(20), settled(), replace(AROUND, faults=("rank 1 was lost",)), "rank 1 was lost"),
    ],
)
def test_one_thing_missing_is_enough(
    record: Record, journal: Journal, around: Circumstances, words: str
) -> None:
    found = judge(figures_of(record, journal, around, None))
    assert not found.ok
    assert found.verdict[0].startswith("FAILED: ")
    assert words in found.verdict[0]


def test_par_that_only_equals_is_no_gain() -> None:
    record = Record(2)
    for rank in (0, 1):
        record.add(steps(rank, 0, 20, live_load=[[SKEWED[rank], EVEN[rank]]] * 20))
    assert not judge(figures(record)).ok


def test_every_shortcoming_is_named() -> None:
    record = skewed(20, identical=[False] * 20)
    found = judge(figures_of(record, Journal(), replace(AROUND, faults=("late",)), None))
    assert [line.split()[0] for line in found.verdict[:4]] == ["FAILED:", "and", "and", "and"]


def test_hold_need_not_move_but_its_outputs_count() -> None:
    around = replace(AROUND, policy="hold")
    assert judge(figures_of(recorded(20), Journal(), around, None)).ok
    differing = recorded(20, identical=[False] * 20)
    assert not judge(figures_of(differing, Journal(), around, None)).ok


def test_a_broken_map_that_nobody_sees_fails_the_comparison_itself() -> None:
    record = recorded(20)
    record.broke.append(Broke(rank=1, step=9, layer=3, expert=7))
    found = judge(figures(record))
    assert not found.ok
    assert "the comparison proves nothing" in found.verdict[0]


@pytest.mark.parametrize(
    ("dispatch", "frozen", "words"),
    [
        ("all-to-all", "", "the daemon cannot see it"),
        ("replicated", "", "has not seen it"),
        ("replicated", "forward 10: 6 of 8", "audit froze the placement: forward 10: 6 of 8"),
    ],
)
def test_a_broken_map_is_said_with_who_noticed(dispatch: str, frozen: str, words: str) -> None:
    record = recorded(20, identical=[i < 9 for i in range(20)])
    record.broke.append(Broke(rank=1, step=9, layer=3, expert=7))
    around = replace(AROUND, dispatch=dispatch)
    found = judge(figures_of(record, replace(settled(), frozen=frozen), around, None))
    assert "differ from the twin's in 11 of 20 steps, 9 to 19" in found.verdict[0]
    said = "\n".join(found.verdict)
    assert "map broken on purpose: rank 1, layer 3, expert 7 before step 9" in said
    assert words in said
