"""Figures of traces, placements and simulations. The only place with matplotlib.

Owns their look. Must not know files or policies.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import Placement, rank_load
from eplbd.errors import ConfigError
from eplbd.offline.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SUFFIXES = (".png", ".svg")

COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#0b7285", "#a61e4d", "#5c940d")
HOLD = "#868e96"
"""Policies, and what nothing is done: grey."""

_STYLE: dict[str, object] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#868e96",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#343a40",
    "xtick.color": "#495057",
    "ytick.color": "#495057",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "eplbd",
    "figure.facecolor": "white",
}
_POINTS = 400
"""Most points of a line; more are averaged."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of everything that is drawn and written in the block."""
    with extra("matplotlib", "a plot").rc_context(_STYLE):
        yield


def figure(rows: int, columns: int = 1, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure with plots one under the other, or side by side; row by row."""
    figures = extra("matplotlib.figure", "a plot")
    made: Figure = figures.Figure(figsize=(9.6, rows * height), layout="constrained")
    return made, [*made.subplots(rows, columns, squeeze=False).ravel()]


def svg(made: Figure) -> str:
    """The figure as an element to put into a page."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save(made: Figure, path: Path) -> None:
    """Write a `.png` or `.svg`. Raises ConfigError."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a plot is written as {' or '.join(SUFFIXES)}")
    try:
        made.savefig(path, dpi=160)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def draw_heat(axes: Axes, total: NDArray[np.integer]) -> None:
    """Heat of `[layers, experts]`, each layer's experts from the hottest to the coldest."""
    heat = total.astype(np.float64)
    mean = heat.mean(1, keepdims=True)
    relative = -np.sort(-heat / np.where(mean > 0, mean, 1), axis=1)
    low = max(0.1, float(relative.min()))
    image = axes.imshow(
        np.clip(relative, low, None),
        aspect="auto",
        cmap="YlOrRd",
        norm=extra("matplotlib.colors", "a plot").LogNorm(low, max(2.0, relative.max())),
        interpolation="nearest",
    )
    axes.set(
        title="Heat: experts of each layer, hottest first",
        xlabel="experts by heat",
        ylabel="MoE layer",
    )
    _bar(axes, image, "times the mean expert", (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100))


def draw_par(axes: Axes, lines: Mapping[str, NDArray[np.float64]], per_window: int) -> None:
    """PAR of every judged row, mean over layers, by policy; `hold` in grey."""
    colours = iter(COLOURS)
    for name, par in lines.items():
        colour = HOLD if name == "hold" else next(colours, "#000000")
        group = -(-len(par) // _POINTS)
        usable = par[: len(par) // group * group].reshape(-1, group).mean(1)
        at = (np.arange(len(usable)) + 0.5) * group
        axes.plot(at, usable, color=colour, label=name, linewidth=1.4)
    rows = max(len(par) for par in lines.values())
    for edge in range(per_window, rows, per_window) if rows <= 40 * per_window else ():
        axes.axvline(edge, color="#dee2e6", linewidth=0.6, zorder=0)
    axes.axhline(1, color="#adb5bd", linewidth=0.8, linestyle=":")
    axes.set(
        title="PAR over time: hottest rank over mean rank, mean over layers; 1.0 is perfect",
        xlabel="judged rows of the trace (lines: a new plan)",
        ylabel="PAR",
        xlim=(0, rows),
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_layers(axes: Axes, by_policy: Mapping[str, NDArray[np.float64]]) -> None:
    """PAR paid by each layer, `[layers]`, by policy."""
    colours = iter(COLOURS)
    for name, paid in by_policy.items():
        colour = HOLD if name == "hold" else next(colours, "#000000")
        marker = "o" if len(paid) < 70 else None
        axes.plot(paid, color=colour, label=name, linewidth=1.2, marker=marker, markersize=2.5)
    axes.axhline(1, color="#adb5bd", linewidth=0.8, linestyle=":")
    axes.set(title="PAR paid, layer by layer", xlabel="MoE layer", ylabel="PAR paid")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_ranks(
    axes: Axes, title: str, placement: Placement, total: NDArray[np.integer], most: float
) -> None:
    """Load of every rank and layer, relative to the layer's mean; `most` ends the scale."""
    load = rank_load(placement, total)
    mean = load.mean(-1, keepdims=True)
    relative = load / np.where(mean > 0, mean, 1)
    image = axes.imshow(
        relative,
        aspect="auto",
        cmap="RdBu_r",
        norm=extra("matplotlib.colors", "a plot").TwoSlopeNorm(1.0, 0.0, most),
        interpolation="nearest",
    )
    axes.set(title=title, xlabel="rank", ylabel="MoE layer")
    _whole_ticks(axes)
    _bar(axes, image, "times the mean rank")


def draw_replicas(axes: Axes, placement: Placement, title: str, most: int) -> None:
    """How many slots hold each expert, `[layers, experts]`; `most` ends the scale."""
    image = axes.imshow(
        placement.replicas(),
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=max(2, most),
        interpolation="nearest",
    )
    axes.set(title=title, xlabel="expert", ylabel="MoE layer")
    _bar(axes, image, "slots", _whole(max(2, most)))


def draw_change(axes: Axes, before: Placement, after: Placement) -> None:
    """Experts that each rank newly hosts, `[layers, ranks]`."""
    moves = (after.hosts() & ~before.hosts()).sum(2)
    most = max(1, int(moves.max()))
    image = axes.imshow(
        moves, aspect="auto", cmap="Oranges", vmin=0, vmax=most, interpolation="nearest"
    )
    axes.set(
        title=f"Moves: {int(moves.sum()):,} experts newly on a rank",
        xlabel="rank",
        ylabel="MoE layer",
    )
    _whole_ticks(axes)
    _bar(axes, image, "moves", _whole(most))


def draw_growth(axes: Sequence[Axes], rows: Sequence[Mapping[str, object]]) -> None:
    """What a group's control plane costs by its number of ranks; rows of `simulate --cluster`."""
    for axis, (title, unit, lines) in zip(axes, _GROWTH, strict=True):
        for colour, (label, key, factor) in zip(COLOURS, lines, strict=False):
            known = [row for row in rows if row[key]]
            at = [float(str(row["ranks"])) for row in known]
            values = [factor * float(str(row[key])) for row in known]
            axis.plot(at, values, "o-", color=colour, label=label, markersize=3)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(title=title, xlabel="ranks", ylabel=unit)
        axis.legend(loc="upper left")


_GROWTH: tuple[tuple[str, str, tuple[tuple[str, str, float], ...]], ...] = (
    (
        "Processor time",
        "cores",
        (("leader", "leader_core", 1.0), ("a relay, mean", "relay_core_mean", 1.0)),
    ),
    ("Longest turn of the leader", "ms", (("leader", "leader_longest_turn_ms", 1.0),)),
    ("Memory of the leader's core", "MB", (("leader", "leader_bytes", 1e-6),)),
    (
        "Between nodes, per rank",
        "kB/s",
        (("up", "up_bytes_per_rank_s", 1e-3), ("down", "down_bytes_per_rank_s", 1e-3)),
    ),
)


def most_relative(placements: Sequence[Placement], total: NDArray[np.integer]) -> float:
    """The hottest rank of any layer over its mean, for a scale that several plots share."""
    found = [1.1]
    for placement in placements:
        load = rank_load(placement, total)
        mean = load.mean(-1)
        found.append(float((load.max(-1) / np.where(mean > 0, mean, 1)).max()))
    return min(max(found), 3.0)


def _whole(most: int) -> range:
    """Whole numbers up to `most`, few enough to be read."""
    return range(0, most + 1, -(-most // 8))


def _whole_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(extra("matplotlib.ticker", "a plot").MaxNLocator(integer=True))


def _bar(axes: Axes, image: AxesImage, label: str, ticks: Sequence[float] = ()) -> None:
    bar = axes.figure.colorbar(image, ax=axes, pad=0.015, aspect=18)
    if ticks:
        low, high = bar.mappable.get_clim()
        shown = [tick for tick in ticks if low <= tick <= high]
        bar.set_ticks(shown, labels=[f"{tick:g}" for tick in shown], minor=False)
        bar.minorticks_off()
    bar.set_label(label)
