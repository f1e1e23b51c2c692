"""Diagnosing: made-up traces whose answer is known, and recorded ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from eplbd.cli import main
from eplbd.offline.forecast import forecast
from eplbd.traces.archive import HeatTrace, save_trace
from eplbd.traces.recording import TraceMeta
from eplbd.traces.writer import recording
from tests.offline.makings import skewed

Document = dict[str, Any]


def diagnosed(folder: Path, heat: NDArray[np.int32], *arguments: object) -> Document:
    path = folder / "trace.npz"
    meta = {"rows": "steps", "window": "one forward"}
    save_trace(path, HeatTrace(heat.astype(np.int64), 4, ("",) * len(heat), meta))
    return asked(path, "--ranks", 8, *arguments)


def asked(path: Path, *arguments: object) -> Document:
    words = ["diagnose", path, *arguments, "--json", "-"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    document: Document = json.loads(result.stdout)
    return document


def test_even_heat_needs_no_balancer(tmp_path: Path) -> None:
    found = diagnosed(tmp_path, np.full((24, 3, 64), 100, np.int32))
    assert found["verdict"] == "leave off", found["reasons"]
    assert found["par"]["off"] == 1.0
    assert found["recommended"]["mode"] == "hold"


@pytest.mark.parametrize("seed", range(4))
def test_noise_cannot_be_followed(tmp_path: Path, seed: int) -> None:
    heat = skewed(32, 3, 64, sigma=0, tokens=400, seed=seed)
    found = diagnosed(tmp_path, heat, "--windows", 16)
    assert found["verdict"] == "leave off", found["reasons"]
    assert found["par"]["oracle"] < found["par"]["off"], "chance alone has to look like skew"
    assert found["forecast"]["correlation"] < 0.2
    assert any("noise" in reason for reason in found["reasons"])


def test_strong_stable_skew_is_worth_it(tmp_path: Path) -> None:
    heat = skewed(400, 3, 64, sigma=1.2, tokens=4000)
    found = diagnosed(tmp_path, heat, "--step-ms", 20, "--moe-share", 0.5, "--expert-bytes", 10**6)
    assert found["verdict"] == "enable", found["reasons"]
    # What waits shrinks with the hottest load: half of 20 ms, by the fraction that PAR fell.
    par = found["par"]
    assert found["saved_ms"] == pytest.approx(10 * (1 - par["on"] / par["off"]), rel=0.05)
    assert found["saved_ms"] == pytest.approx(10 * found["gain"], rel=1e-3)
    assert found["forecast"]["correlation"] > 0.95
    assert found["recommended"]["mode"] == "static"
    ages = found["gain_by_age_in_windows"]
    assert found["recommended"]["interval_windows"] == len(ages), "stable heat does not age"
    assert par["oracle"] <= par["on"] < par["off"]
    stall, saved = found["first_stall_ms"], found["saved_ms"]
    assert found["first_break_even_steps"] == pytest.approx(stall / saved, rel=1e-2)


def test_moves_that_a_plan_does_not_live_to_repay_ask_for_tuning(tmp_path: Path) -> None:
    heat = skewed(48, 3, 64, sigma=1.2, tokens=4000)
    dear = ("--policy", "greedy", "--expert-bytes", 10**9)
    found = diagnosed(tmp_path, heat, *dear, "--windows", 12)
    assert found["verdict"] == "tune"
    assert found["lifetime_steps"] == 4
    assert found["break_even_steps"] > 4
    assert any("its moves cost" in reason for reason in found["reasons"])


def test_heat_that_turns_over_ages_quickly(tmp_path: Path) -> None:
    parts = [skewed(40, 3, 64, sigma=1.0, tokens=8000, seed=s // 3) for s in range(9)]
    found = diagnosed(tmp_path, np.concatenate(parts), "--windows", 9)
    assert found["recommended"]["mode"] != "static"
    ages = found["gain_by_age_in_windows"]
    assert ages[3] < ages[0] / 2
    assert found["recommended"]["interval_windows"] <= 2
    assert found["par"]["static"] > found["par"]["on"]


def test_redundancy_is_recommended_no_further_than_it_helps(tmp_path: Path) -> None:
    heat = np.full((24, 2, 32), 100, np.int32)
    heat[:, :, 0] = 1500  # one expert that needs several ranks
    found = diagnosed(tmp_path, heat, "--slots", 4)
    by_slots = {one["slots"]: one for one in found["redundancy"]}
    chosen = found["recommended"]["slots"]
    saved = {slots: 50 * 0.3 * one["gain"] for slots, one in by_slots.items()}
    enough = max(saved.values()) - 0.01 * 50
    assert chosen == min(slots for slots in saved if saved[slots] >= enough)
    assert chosen > 4
    assert by_slots[4]["rank_bytes"] == 0
    assert by_slots[5]["rank_bytes"] == 2 * 44_040_192
    assert found["verdict"] == "tune", found["reasons"]


def test_phases_that_differ_are_told_apart(tmp_path: Path) -> None:
    meta = TraceMeta(layers=2, experts=32, ranks=4, slots_per_rank=9, node_of=(0,) * 4)
    prefill = skewed(40, 2, 32, sigma=1.2, tokens=9000, seed=1)
    decode = skewed(40, 2, 32, sigma=1.2, tokens=500, seed=2)
    with recording(tmp_path / "r", meta) as writer:
        for step in range(40):
            writer.add(prefill[step], forward=2 * step, epoch=0, phase=1)
            writer.add(decode[step], forward=2 * step + 1, epoch=0, phase=2)
    found = asked(tmp_path / "r")
    assert found["phases_correlation"] < 0.8
    assert found["recommended"]["phase"] == "prefill"
    assert any("[balance] phase" in reason for reason in found["reasons"])


def test_the_text_begins_with_the_verdict(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    heat = np.full((6, 2, 16), 9, np.int64)
    save_trace(path, HeatTrace(heat, 2, ("",) * 6, {}))
    result = CliRunner().invoke(main, ["diagnose", str(path), "--ranks", "4"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("LEAVE OFF: ")
    assert "a row of this trace sums many forwards" in result.stdout
    result = CliRunner().invoke(main, ["diagnose", str(path), "--ranks", "4", "--moe-share", "2"])
    assert result.exit_code == 1
    assert "a share within 0..1" in result.stderr
    words = ["diagnose", str(path), "--ranks", "4", "--policy", "greedy,random"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "made with one policy" in result.stderr


def test_sampling_noise_is_predicted_where_there_is_nothing_else() -> None:
    rng = np.random.default_rng(3)
    tokens, topk, experts = 300, 4, 64
    windows = []
    for _ in range(12):
        chosen = np.argsort(rng.random((tokens, experts)), axis=1)[:, :topk]
        windows.append(np.bincount(chosen.ravel(), minlength=experts)[None, None])
    seen = forecast(windows, topk)
    assert seen.change == pytest.approx(seen.noise, rel=0.1)
    assert abs(seen.correlation) < 0.1
    assert seen.ceiling < 0.2


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("flame290m_decode", {"leave off"}),
        ("gptoss20b_mmlu_mixed", {"enable", "tune"}),
        ("switch128_bookcorpus", {"enable", "tune"}),
    ],
)
def test_recorded_traces(shared_traces: Path, name: str, verdict: set[str]) -> None:
    found = asked(shared_traces / f"{name}.npz", "--ranks", 8)
    assert found["verdict"] in verdict, found["reasons"]
