"""What a person sees: the table fits its terminal, the lines say what the daemon said."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from rich.console import Console

from eplbd.demo.record import STOPPED, Journal, LogLine, Record
from eplbd.demo.reports import Steps
from eplbd.demo.table import captions, drawn, scale, sparkline
from eplbd.demo.view import Plain, Snapshot, words

TITLE = "4 ranks x 10 slots, 6 layers of 32 experts, top-4, topics of real text"
EPOCH = LogLine(
    "epoch ended", outcome="settled", epoch=23, moves=131, rounds=16, stage_s=1.25, at=345
)
LINES = (
    LogLine("group ready"),
    EPOCH,
    LogLine(
        "cycle ended",
        outcome="applied",
        moves=142,
        par_before=1.65,
        par_predicted=1.26,
        par_realised=1.27,
    ),
    LogLine("placement frozen", level="error", reason="forward 1: " + "x" * 200),
)


def record(count: int) -> Record:
    """Steps of two topics on four ranks, six layers; the twin is twice as uneven."""
    rng = np.random.default_rng(0)
    made = Record(4)
    for rank in range(4):
        live = rng.integers(200, 300, (count, 6)) + 30 * rank
        made.add(
            Steps(
                rank=rank,
                first=0,
                topics=["code"] * (count // 2) + ["tables"] * (count - count // 2),
                identical=[True] * count,
                staging=[False] * count,
                committed=[False] * count,
                live_s=[0.05] * count,
                twin_s=[0.05] * count,
                hook_s=[3e-5] * count,
                live_load=live.tolist(),
                twin_load=(live + 200 * rank).tolist(),
            )
        )
    return made


def snapshot(count: int, notes: Sequence[str] = (), *, phase: str = "serving") -> Snapshot:
    journal = Journal(settled=12, aborted=1, moves=700, bytes=33 << 20, frozen="y" * 200)
    return Snapshot(
        phase=phase,
        title=TITLE,
        dispatch="all-to-all",
        policy="greedy",
        elapsed_s=20.0,
        share=0.5,
        record=record(count),
        journal=journal,
        log=LINES * 3,
        notes=notes,
    )


def lines_of(now: Snapshot, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as captured:
        console.print(drawn(now, width, height))
    return captured.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 40), (120, 30), (200, 60)])
@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_the_table_fits_its_terminal(width: int, height: int, count: int) -> None:
    drawing = lines_of(snapshot(count), width, height)
    assert len(drawing) <= height
    assert all(len(line) <= width for line in drawing)
    shown = "\n".join(drawing)
    assert "placement frozen" in shown, "the newest line of the log always has room"
    assert ("layer 5" in shown) == bool(count)


def test_a_line_of_an_epoch_is_whole_at_eighty_columns() -> None:
    drawing = lines_of(snapshot(0), 80, 40)
    assert any(line.rstrip().endswith("staged in 1.25 s, flip at 345") for line in drawing)
    assert any(line.rstrip().endswith("predicted 1.26, found 1.27") for line in drawing)


def test_faults_and_differences_are_shown() -> None:
    now = snapshot(20, ["the daemon was ended by SIGKILL after step 20"])
    assert any("SIGKILL" in line for line in lines_of(now, 80, 40))
    now.record.steps[3].identical[2] = False
    assert any("differ from the twin's in 1 of 20" in line for line in lines_of(now, 80, 40))


def test_a_sparkline_spans_the_scale() -> None:
    assert sparkline(np.array([1.0, 1.5, 2.0, 3.0]), 10, 2.0) == "▁▅██"
    assert sparkline(np.array([]), 10, 2.0) == ""
    assert len(sparkline(np.ones(1_000), 40, 2.0)) == 40


def test_captions_begin_where_topics_do() -> None:
    steps = record(100).steps
    assert captions(steps, 20) == "code      tables    "
    assert captions(steps[:3], 20) == "code".ljust(20)
    assert captions(steps, 12) == "code  tables"
    assert captions(steps, 6) == "codtab", "cut where there is no room"


def test_the_scale_leaves_single_peaks_out() -> None:
    steps = record(100).steps
    quiet = scale(steps)
    steps[0].twin_par[:] = 4.0
    assert scale(steps) == quiet


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (EPOCH, "epoch 23 settled: 131 moves, 16 rounds, staged in 1.25 s, flip at 345"),
        (
            LogLine("epoch ended", outcome="aborted", epoch=2, reason="rank 1 was lost"),
            "epoch 2 aborted: rank 1 was lost",
        ),
        (
            LogLine("epoch ended", outcome="aborted", epoch=3, reason=STOPPED),
            "epoch 3 given up: the daemon stops",
        ),
        (
            LogLine("cycle ended", outcome="applied", moves=9, par_before=1.5, par_predicted=1.2),
            "rebalance applied: 9 moves, PAR 1.50, predicted 1.20",
        ),
        (
            LogLine("cycle ended", outcome="refused", reason="gain is small"),
            "rebalance refused: gain is small",
        ),
        (LogLine("serving"), "serving"),
    ],
)
def test_the_daemons_lines_in_words(line: LogLine, said: str) -> None:
    assert words(line) == said


def test_the_plain_view_says_everything_once() -> None:
    written: list[str] = []
    view = Plain(written.append)
    with view:
        view.refresh(snapshot(0, phase="starting"))
        view.log(EPOCH)
        for _ in range(3):
            view.refresh(snapshot(20, ["something broke"]))
        view.close(["OK: fine", "more"])
    assert written == [
        f"demo: {TITLE}; all-to-all, policy greedy",
        "demo: starting",
        f"eplbd: {words(EPOCH)}",
        "demo: serving",
        "demo: something broke",
        written[5],
        "demo: OK: fine",
        "demo: more",
    ]
    assert written[5].startswith("demo: step 20, topic tables, PAR 1.")
