"""What eplbd costs in token latency: one engine, in turns without it, with it, and amid epochs.

Owns the processes and the figures. Ratios are what to look at: the arms take turns in one run, but
two ranks, their agents and the daemon share this machine's processors with whatever else runs. It
must not know vLLM or torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np

from eplbd_vllm.demo.engines import EngineError, environment, free_port, started
from eplbd_vllm.demo.run import Options, daemon, say, write_tiny

RESTLESS = {
    "balance.interval_s": "0.2",
    "balance.min_gain": "0.0",
    "balance.par_trigger": "1.0",
    "balance.pause_s": "0.1",
    "epoch.experts_per_rank": "1",
}
"""One epoch after the other, while it is not told to rest."""

NAMES = {"away": "without eplbd", "still": "with it, no moves", "moving": "with it, amid epochs"}


class Report(TypedDict):
    """See `torch_latency.Report`."""

    step_s: dict[str, list[list[float]]]
    cpu_s: dict[str, list[float]]
    steps: int
    epochs: int


def measure(options: Options, folder: Path, rounds: int) -> Report:
    """Run it, print the figures and return them. Raises EngineError if the engine fails."""
    model, endpoint, report = folder / "tiny", f"ipc://{folder}/w.sock", folder / "report.json"
    write_tiny(options, model)
    ctl = [str(options.daemon), "-o", f"daemon.socket={endpoint}"]
    spec = {"model": str(model), "report": str(report), "rounds": rounds, "ctl": ctl}
    command: list[str | Path] = [options.bin / "python", "-m", "torch.distributed.run"]
    command += ["--nproc-per-node", "2", "--master-port", str(free_port())]
    command += ["-m", "eplbd_vllm.demo.torch_latency", json.dumps(spec)]
    env = environment(endpoint, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    say(f"one engine in two EP ranks, {rounds} rounds of three blocks that take turns")
    with (
        daemon(options, folder, endpoint, RESTLESS),
        started(command, folder / "engine.log", env) as engine,
    ):
        if engine.wait():
            raise EngineError(f"the engine failed\n{engine.story()}")
    found: Report = json.loads(report.read_text(encoding="utf-8"))
    for line in table(found):
        say(line)
    return found


def table(report: Report) -> Iterator[str]:
    """Lines: per arm the step's median and tail, and its ratio to that without eplbd."""
    yield f"{'':22}{'median':>10}{'99 %':>10}{'processor':>11}   ratio of medians, least to most"
    for arm, name in NAMES.items():
        steps = np.concatenate([np.asarray(each) for each in report["step_s"][arm]])
        if not steps.size:
            yield f"{name:22} no step fell amid an epoch: more rounds"
            continue
        middle, tail = (1e3 * np.quantile(steps, q) for q in (0.5, 0.99))
        cpu = 1e3 * np.mean(report["cpu_s"][arm]) / report["steps"]
        by_round = ratios(report, arm)
        yield (
            f"{name:22}{middle:7.2f} ms{tail:7.2f} ms{cpu:8.2f} ms   "
            f"{np.median(by_round):.3f} ({min(by_round):.3f} to {max(by_round):.3f})"
        )
    yield f"{report['epochs']} epochs settled in the blocks with moves"


def ratios(report: Report, arm: str) -> list[float]:
    """Of the arm's median step to that without eplbd, round by round."""
    without = report["step_s"]["away"]
    return [
        float(np.median(mine) / np.median(theirs))
        for mine, theirs in zip(report["step_s"][arm], without, strict=True)
        if mine
    ]
