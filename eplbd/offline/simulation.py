"""`eplbd simulate`: every policy asked for, and `hold` as the baseline, on one trace.

Owns the order of rows, the table and the JSON. Must not know how a row is computed.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import click

from eplbd.offline.progress import progress
from eplbd.offline.settings import Options, Task, prepare
from eplbd.offline.simulate import Result, baseline, simulate, unbalanced
from eplbd.offline.table import aligned, emit_json, figure, size
from eplbd.offline.terms import Terms

_COLUMNS = (
    ("PAR mean", "par_mean", 3),
    ("p95", "par_p95", 3),
    ("p99", "par_p99", 3),
    ("paid", "par_paid", 3),
    ("worst layer", "worst_layer_par_paid", 3),
    ("moves/layer", "moves_per_layer", 1),
    ("plan ms", "plan_ms", 1),
    ("stall ms", "stall_ms", 1),
)


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """A task and its results, `hold` first. off: with no balancer at all, for comparison."""

    task: Task
    off: Result | None
    results: tuple[Result, ...]


def run(options: Options) -> Simulation:
    """Simulate. Raises ConfigError and PolicyError; what a policy does wrong is in its row."""
    task = prepare(options)
    results = [baseline(task.windows, task.topology, task.initial, task.budget)]
    guests = [guest for guest in task.guests if guest.name != "hold"]
    with progress("planning", len(guests) * (len(task.windows) - 1)) as done:
        results += [
            simulate(
                task.windows,
                guest,
                task.topology,
                task.initial,
                task.budget,
                bandwidth=task.bandwidth,
                phase=options.phase,
                done=done,
            )
            for guest in guests
        ]
    off = unbalanced(task.windows, task.topology.ranks, task.budget)
    return Simulation(task, off, tuple(results))


def command(options: Options, terms: Terms, json: str | None, report: Path | None) -> None:
    """Run, and print the table, the JSON, the report."""
    simulation = run(options)
    if report is not None:
        from eplbd.offline.report import write  # noqa: PLC0415  # needs the extra

        write(report, simulation, terms)
    if json is not None:
        emit_json(json, [result.row() for result in simulation.results])
    if json != "-":
        click.echo(text(simulation))


def text(simulation: Simulation) -> str:
    """What `eplbd simulate` prints."""
    task = simulation.task
    rows = [result.row() for result in simulation.results]
    header = ["policy", *(name for name, _, _ in _COLUMNS), "bytes", "failures"]
    body = [
        [
            str(row["policy"]),
            *(figure(row[key], digits) for _, key, digits in _COLUMNS),
            size(sum(one.moves for one in result.judged) * result.expert_bytes),
            str(len(result.failures)),
        ]
        for row, result in zip(rows, simulation.results, strict=True)
    ]
    lines = [described(task), "", aligned(header, body)]
    if simulation.off is not None:
        lines.append(f"off (no balancer, no copies): PAR paid {simulation.off.par_paid:.3f}")
    for result in simulation.results:
        lines += [f"\n{result.policy} failed: {failure}" for failure in result.failures[:3]]
    return "\n".join(lines)


def described(task: Task) -> str:
    """What was simulated, in two lines."""
    recorded, topology = task.recorded, task.topology
    kind = "forward" if recorded.are_steps else "row"
    says = textwrap.shorten(recorded.says, 72, placeholder=" ...")
    return (
        f"{recorded.path}: {recorded.layers} layers x {recorded.experts} experts on "
        f"{topology.ranks} ranks x {topology.slots_per_rank} slots, {topology.nodes} node(s)\n"
        f"{len(task.windows)} windows of {task.rows_per_window} {kind}(s) ({says}); "
        "each plan is judged on the window after it"
    )
