"""The heat map: a layer per row and a rank per column, PAR and its trend beside each row.

Owns how many layers and ranks share a cell where there is not room for all: a cell then shows the
hottest of its own, so that nothing hot can hide. Must not know colours; it names loads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from eplbd.top.history import Story
from eplbd.top.wording import Line, Span, left, ratio, right
from eplbd.wire.stream import Group

SYMBOLS = ((90, "."), (110, "-"), (125, "+"), (150, "*"), (200, "#"))
"""A load up to this percentage of the mean, and its sign; `@` for what is beyond."""

LEGEND = ". <0.9  - 1.0  + >1.1  * >1.25  # >1.5  @ >2"

_SPARKS = "▁▂▃▄▅▆▇█"
_NUMBER_WIDTH = 5
_WIDEST = 7
_FLAT = 0.5
"""A trend's full height is at least this much of PAR: noise must not look like a mountain."""


def symbol(percent: int) -> str:
    """The sign of a load."""
    return next((sign for most, sign in SYMBOLS if percent <= most), "@")


def par_tone(par: float) -> str:
    """How worried to look."""
    return "good" if par <= 1.1 else "" if par <= 1.25 else "warn" if par <= 1.5 else "bad"


def shares(count: int, room: int) -> list[tuple[int, int]]:
    """First and last of each of at most `room` neighbourhoods, as even as can be."""
    bins = max(1, min(count, room))
    edges = [index * count // bins for index in range(bins + 1)]
    return [(first, after - 1) for first, after in itertools.pairwise(edges)]


def spark(values: Sequence[float], width: int, top: float) -> str:
    """The newest of these as a row of blocks: 1.0 is the floor, `top` the ceiling."""
    steps = len(_SPARKS) - 1
    newest = values[-width:]
    heights = (round((value - 1.0) / max(top - 1.0, _FLAT) * steps) for value in newest)
    return "".join(_SPARKS[min(max(height, 0), steps)] for height in heights)


def heat_lines(group: Group, story: Story, width: int, height: int) -> list[Line]:
    """The map in `height` lines of `width` characters, a head included."""
    if not group.rank_load:
        return [(Span(_nothing_yet(group), "dim"),)]
    layers = shares(len(group.rank_load), height - 1)
    label = max(5, *(len(_label(share)) for share in layers))
    planned = bool(group.planned_par) and width >= 60
    trend = 8 if width < 100 else 20
    rest = label + 1 + 6 + (6 if planned else 0) + 1 + trend
    ranks = shares(len(group.rank_load[0]), max(1, width - rest))
    cell = min(_WIDEST, max(1, (width - rest) // len(ranks)))
    top = max((max(layer) for layer in story.trend), default=1.0)
    lines: list[Line] = [_head(ranks, label, cell, planned=planned)]
    for first, last in layers:
        rows = group.rank_load[first : last + 1]
        loads = [max(max(row[a : b + 1]) for row in rows) for a, b in ranks]
        par = max(group.observed_par[first : last + 1])
        cells = [left(_label((first, last)), label, "dim"), Span(" ")]
        cells += [Span(_cell(load, cell), f"heat:{load}") for load in loads]
        cells.append(right(ratio(par), 6, par_tone(par)))
        if planned:
            cells.append(right(ratio(max(group.planned_par[first : last + 1])), 6, "dim"))
        cells += [Span(" "), left(spark(story.trend_of(first, last), trend, top), trend, "dim")]
        lines.append(tuple(cells))
    return lines


def _head(ranks: list[tuple[int, int]], label: int, cell: int, *, planned: bool) -> Line:
    room = cell * len(ranks)
    if cell >= len(str(ranks[-1][1])) + 1 and all(a == b for a, b in ranks):
        named = "".join(str(a).rjust(cell - 1) + " " for a, _ in ranks)
    else:
        each = "" if all(a == b for a, b in ranks) else f", {ranks[0][1] + 1} and more per cell"
        named = left(f"ranks 0 to {ranks[-1][1]}{each}", room).text
    text = left("layer", label).text + " " + named + right("PAR", 6).text
    return (Span(text + (right("plan", 6).text if planned else "") + " trend", "head"),)


def _label(share: tuple[int, int]) -> str:
    first, last = share
    return str(first) if first == last else f"{first}-{last}"


def _cell(percent: int, width: int) -> str:
    if width >= _NUMBER_WIDTH:
        return f"{percent / 100:.2f} ".rjust(width)
    return symbol(percent) if width == 1 else symbol(percent) * (width - 1) + " "


def _nothing_yet(group: Group) -> str:
    missing = [rank.rank for rank in group.ranks if rank.state in ("absent", "lost")]
    if missing:
        here = len(group.ranks) - len(missing)
        return f"no heat: {here} of {len(group.ranks)} ranks are here, rank {missing[0]} is not"
    return "no heat yet: it comes with the next forwards"
