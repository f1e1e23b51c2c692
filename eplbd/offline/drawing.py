"""`eplbd plot`: a picture of a trace, with what policies make of it, or of a placement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.offline import plots
from eplbd.offline.formats import registry
from eplbd.offline.formats.content import Context, Mapped
from eplbd.offline.settings import Options
from eplbd.offline.simulate import Result
from eplbd.offline.simulation import Simulation, run
from eplbd.offline.windows import load

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def command(options: Options, out: Path, against: Path | None) -> None:
    """Draw a trace or a placement into `out`. Raises ConfigError."""
    if out.suffix not in plots.SUFFIXES:
        raise ConfigError(f"{out}: a plot is written as {' or '.join(plots.SUFFIXES)}")
    with plots.style():
        if registry.source(options.trace, None).kind == "placement":
            _placement(options, out, against)
        elif against is not None:
            raise ConfigError("--against compares two placements; the input is a trace")
        elif options.ranks is None and not options.trace.is_dir():
            _heat(options.trace, out)
        else:
            _simulation(run(options), out)


def _heat(path: Path, out: Path) -> None:
    made, (axes,) = plots.figure(1, height=4.2)
    plots.draw_heat(axes, load(path).rows.sum(axis=0, dtype=np.int64))
    plots.save(made, out)


def _simulation(simulation: Simulation, out: Path) -> None:
    made, axes = plots.figure(4)
    rows = simulation.task.recorded.rows
    plots.draw_heat(axes[0], rows.sum(axis=0, dtype=np.int64))
    draw_par(simulation, axes[1])
    draw_before_after(simulation, simulation.results[-1], axes[2], axes[3])
    plots.save(made, out)


def draw_par(simulation: Simulation, axes: Axes) -> None:
    """PAR over time of every policy."""
    lines = {}
    for result in simulation.results:
        loads = result.loads
        mean = np.where(loads.mean > 0, loads.mean, 1)
        par = np.where(loads.mean > 0, loads.hottest / mean, np.nan)
        busy = ~np.isnan(par).all(axis=1)
        lines[result.policy] = np.nanmean(par[busy], axis=1)
    plots.draw_par(axes, lines, simulation.task.rows_per_window)


def draw_before_after(simulation: Simulation, result: Result, before: Axes, after: Axes) -> None:
    """Loads of ranks in the last window, where nothing moved and under one policy."""
    total = simulation.task.windows[-1].sum(axis=0, dtype=np.int64)
    placements = [simulation.task.initial, result.judged[-1].placement]
    most = plots.most_relative(placements, total)
    plots.draw_ranks(before, "Load of ranks where nothing moves", placements[0], total, most)
    plots.draw_ranks(after, f"Load of ranks under {result.policy}", placements[1], total, most)


def _placement(options: Options, out: Path, against: Path | None) -> None:
    placement = _read(options.trace, options)
    if against is None:
        made, (axes,) = plots.figure(1, height=4.2)
        most = int(placement.replicas().max())
        plots.draw_replicas(axes, placement, "Replicas of each expert", most)
    else:
        other = _read(against, options)
        if other.slots.shape != placement.slots.shape or other.experts != placement.experts:
            raise ConfigError(f"{against}: is of another shape than {options.trace}")
        made, axes_ = plots.figure(3)
        most = int(max(placement.replicas().max(), other.replicas().max()))
        plots.draw_replicas(axes_[0], placement, f"Replicas: {options.trace.name}", most)
        plots.draw_replicas(axes_[1], other, f"Replicas: {against.name}", most)
        plots.draw_change(axes_[2], placement, other)
    plots.save(made, out)


def _read(path: Path, options: Options) -> Placement:
    chosen = registry.source(path, None)
    if chosen.read is None or chosen.kind != "placement":
        raise ConfigError(f"{path}: holds a {chosen.kind}; expected a placement")
    content = chosen.read(path, Context(ranks=options.ranks))
    assert isinstance(content, Mapped)  # noqa: S101  # its kind
    return content.placement
