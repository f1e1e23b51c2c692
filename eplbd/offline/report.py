"""The page that `eplbd simulate --report` writes: one file, no network, conclusion first.

Owns which result is recommended on it and the words; the look is the template's. Must not compute
what `simulate` has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import numpy as np

from eplbd.errors import ConfigError
from eplbd.offline import plots
from eplbd.offline.drawing import draw_before_after, draw_par
from eplbd.offline.extras import extra
from eplbd.offline.measure import gained
from eplbd.offline.simulate import Result
from eplbd.offline.simulation import Simulation
from eplbd.offline.table import figure, size
from eplbd.offline.terms import Terms
from eplbd.traces.arrays import write_text

_AS_GOOD = 0.01
"""Of policies whose PAR differs by no more than this part, the one that moves least is better."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The policy that the page recommends.

    against: what serves without it, the better of `hold` and no balancer at all. saved: fraction
    that it takes off the hottest loads. worth: whether that is enough and more than chance.
    """

    best: Result
    against: Result
    saved: float
    saved_ms: float
    stall_ms: float
    worth: bool

    @property
    def break_even_steps(self) -> float:
        """Forwards after which a plan has paid for its moves if nothing of them was hidden."""
        return self.stall_ms / self.saved_ms if self.saved_ms > 0 else float("inf")


def write(path: Path, simulation: Simulation, terms: Terms) -> None:
    """Write the page. Raises ConfigError."""
    page = render(simulation, terms)
    try:
        write_text(path, page)
    except OSError as error:
        raise ConfigError(f"--report {path}: cannot be written: {error.strerror}") from error


def choose(simulation: Simulation, terms: Terms) -> Choice:
    """The policy with the lowest PAR paid; of several as good, the one that moves least."""
    hold, *others = simulation.results
    able = [one for one in others if not one.failures] or others
    best = hold
    if able:
        least = min(one.par_total for one in able)
        near = [one for one in able if one.par_total <= least * (1 + _AS_GOOD)]
        best = min(near, key=lambda one: one.moves_per_layer)
    off = simulation.off
    against = off if off is not None and off.par_total < hold.par_total else hold
    gain = gained([one.loads for one in against.judged], [one.loads for one in best.judged])
    saved = 1 - best.par_total / against.par_total
    saved_ms = terms.saved_ms(saved)
    stalls = [one.transfer.seconds for one in best.judged if one.transfer is not None]
    return Choice(
        best=best,
        against=against,
        saved=saved,
        saved_ms=saved_ms,
        stall_ms=float(np.mean(stalls)) * 1e3 if stalls else 0.0,
        worth=saved_ms >= terms.min_gain * terms.step_ms and gain.beyond_chance(),
    )


def render(simulation: Simulation, terms: Terms) -> str:
    """The page as text."""
    jinja2 = extra("jinja2", "a report")
    source = resources.files("eplbd.offline").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    choice = choose(simulation, terms)
    shown = [simulation.off] if simulation.off is not None else []
    rows = [_row(result, choice.against) for result in [*shown, *simulation.results]]
    with plots.style():
        drawn = _plots(simulation, choice)
    page: str = environment.from_string(source).render(
        task=simulation.task,
        terms=terms,
        choice=choice,
        break_even=f"{choice.break_even_steps:,.0f}",
        rows=rows,
        failures=[(result.policy, result.failures) for result in simulation.results],
        plots=[jinja2.utils.markupsafe.Markup(one) for one in drawn],
        bytes_per_plan=size(
            choice.best.row()["bytes"] / len(choice.best.judged)  # type: ignore[operator]  # an int
        ),
        version=metadata.version("eplbd"),
    )
    return page


def _row(result: Result, against: Result) -> dict[str, str]:
    """A line of the table, as text."""
    row = result.row()
    change = result.par_total / against.par_total - 1
    return {
        "policy": result.policy,
        **{key: figure(row[key]) for key in ("par_mean", "par_p95", "par_p99", "par_paid")},
        "worst": f"{figure(row['worst_layer_par_paid'])} (layer {row['worst_layer']})",
        "change": f"{change:+.1%}" if result is not against else "",
        "first": figure(row["first_moves_per_layer"], 1),
        "later": figure(row["later_moves_per_layer"], 1),
        "bytes": size(sum(one.moves for one in result.judged) * result.expert_bytes),
        "plan": figure(row["plan_ms"], 1),
        "stall": figure(row["stall_ms"], 0),
        "failed": str(len(result.failures)) if result.failures else "",
    }


def _plots(simulation: Simulation, choice: Choice) -> list[str]:
    made, (axes,) = plots.figure(1, height=2.8)
    draw_par(simulation, axes)
    over_time = plots.svg(made)

    made, (axes,) = plots.figure(1, height=2.6)
    plots.draw_layers(
        axes,
        {
            result.policy: np.mean([one.loads.paid for one in result.judged], axis=0)
            for result in simulation.results
        },
    )
    by_layer = plots.svg(made)

    made, (before, after) = plots.figure(1, 2, height=3.2)
    draw_before_after(simulation, choice.best, before, after)
    ranks = plots.svg(made)

    made, (axes,) = plots.figure(1, height=2.9)
    plots.draw_heat(axes, simulation.task.recorded.rows.sum(axis=0, dtype=np.int64))
    return [over_time, by_layer, ranks, plots.svg(made)]
