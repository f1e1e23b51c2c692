"""The measurement of token latency: its figures on a report, and one real run of few rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from eplbd_vllm.demo.latency import Report, measure, ratios, table
from eplbd_vllm.demo.run import Options
from tests.vllm.engines import BIN, REPOSITORY


def report(still: list[list[float]], moving: list[list[float]]) -> Report:
    away = [[0.010, 0.012, 0.100], [0.020, 0.020, 0.020]]
    steps = {"away": away, "still": still, "moving": moving}
    return Report(step_s=steps, cpu_s={arm: [0.3, 0.3] for arm in steps}, steps=3, epochs=7)


def test_ratios_are_of_medians_round_by_round() -> None:
    found = report([[0.012, 0.018, 0.018], [0.020]], [[], [0.030]])
    assert ratios(found, "away") == [1.0, 1.0]
    assert ratios(found, "still") == pytest.approx([1.5, 1.0])
    assert ratios(found, "moving") == pytest.approx([1.5]), "a round without epochs says nothing"


def test_the_table_has_a_line_for_each_arm_and_says_what_is_missing() -> None:
    lines = list(table(report([[0.012] * 3, [0.030] * 3], [[], []])))
    assert lines[1].endswith("1.000 (1.000 to 1.000)")
    assert lines[2].endswith("1.250 (1.000 to 1.500)")
    assert "no step fell amid an epoch" in lines[3]
    assert lines[4].startswith("7 epochs settled")


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_real_engine_bears_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():  # the figures belong into the log of whoever runs this
        found = measure(Options(REPOSITORY / ".venv/bin/eplbd", BIN), tmp_path, rounds=4)
    assert all(any(ratios(found, arm)) for arm in found["step_s"])
    assert found["epochs"] > 0
    # Its own time, not the machine's: others make a clock run faster, a processor's seconds not.
    cpu = {arm: sum(seconds) for arm, seconds in found["cpu_s"].items()}
    assert cpu["still"] < 2 * cpu["away"], cpu
