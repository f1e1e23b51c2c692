"""A run as a table on a terminal, drawn anew some times a second.

Owns the layout, for eighty columns and more. What the figures mean is `verdict`'s, the words of log
lines are `view`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Self

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from eplbd.demo.record import Floats, LogLine, Step
from eplbd.demo.view import Snapshot, recent, words

LEVELS = "▁▂▃▄▅▆▇█"
LINE_STYLES = {"warning": "yellow", "error": "bold red", "critical": "bold red"}
_LABEL = 9
"""Columns of the labels at the left."""
_NUMBERS = (5, 8)
"""Columns of the two figures of a layer."""
_FIXED_LINES = 15
"""Lines of the picture beside those of layers, log and notes."""
_LEAST_LOG = 2


class LiveTable:
    """The view for a terminal; what is left on it in the end is the last state and the verdict."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        """See `View`."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """See `View`."""
        self._live.stop()

    def refresh(self, now: Snapshot) -> None:
        """See `View`."""
        width, height = self._console.size
        self._live.update(drawn(now, width, height), refresh=True)

    def log(self, line: LogLine) -> None:
        """See `View`."""

    def close(self, verdict: Sequence[str]) -> None:
        """See `View`."""
        self._live.stop()
        head, *rest = verdict
        style = "bold green" if head.startswith("OK") else "bold red"
        self._console.print(Text(head, style))
        for sentence in rest:
            self._console.print(Padding(Text(sentence), (0, 0, 0, 2)))


def drawn(now: Snapshot, width: int, height: int) -> RenderableType:
    """The whole picture; the log has what height is left."""
    steps = now.record.steps
    parts: list[RenderableType] = [_header(now, width), Text()]
    room = height - _FIXED_LINES - len(now.notes)
    if steps:
        parts += [_layers(steps, width), Text(), _facts(now, width), Text()]
        room -= len(steps[0].live_par)
    parts += [_log(now.log[-max(_LEAST_LOG, room) :], width), Text()]
    parts += [Text(note, "bold red") for note in now.notes]
    return Group(*parts)


def _header(now: Snapshot, width: int) -> RenderableType:
    title = Text.assemble(
        ("eplbd demo", "bold"), f"  {now.dispatch}, policy {now.policy}, {now.phase}"
    )
    bar = Table.grid(padding=(0, 1))
    done = ProgressBar(total=1.0, completed=now.share, width=max(20, width - 30))
    bar.add_row(f"{now.elapsed_s:4.0f} s", done, f"{100 * now.share:3.0f} %")
    return Group(title, Text(now.title, "dim", overflow="ellipsis", no_wrap=True), bar)


def _layers(steps: Sequence[Step], width: int) -> Table:
    """PAR of each layer now: with moves, without, how that looks, and how it came about."""
    live, twin = (recent(steps, name) for name in ("live_par", "twin_par"))
    top = scale(steps)
    room = width - _LABEL - sum(_NUMBERS) - 4
    bars = min(30, room // 2)
    wide = min(60, room - bars)
    table = Table.grid(padding=(0, 1))
    for column in (_LABEL, *_NUMBERS, bars, wide):
        table.add_column(width=column, no_wrap=True, overflow="crop")
    table.columns[1].justify = table.columns[2].justify = "right"
    heads = ("now", "no moves", f"1.0{f'{top:.1f}':>{bars - 3}}", "since the start")
    table.add_row(Text("PAR", "bold"), *(Text(head, "dim") for head in heads))
    history = np.array([step.live_par for step in steps])
    rows = [(f"layer {i}", live[i], twin[i], history[:, i]) for i in range(len(live))]
    rows.append(("mean", live.mean(), twin.mean(), history.mean(1)))
    for name, now, before, past in rows:
        table.add_row(
            Text(name, "bold" if name == "mean" else ""),
            Text(f"{now:.2f}", "green" if now < before else ""),
            Text(f"{before:.2f}", "dim"),
            _bar(float(now), float(before), top, bars),
            Text(sparkline(past, wide, top), "cyan"),
        )
    table.add_row(*("" for _ in heads), Text(captions(steps, wide), "magenta"))
    return table


def scale(steps: Sequence[Step]) -> float:
    """Largest PAR that is drawn: one layer and step in ten may be over it."""
    some = steps[:: max(1, len(steps) // 64)]
    return max(2.0, ceil(4 * float(np.percentile([step.twin_par for step in some], 90))) / 4)


def captions(steps: Sequence[Step], width: int) -> str:
    """Topics, each where it begins in a sparkline of the same width, as far as there is room."""
    shares = np.array_split(np.arange(len(steps)), min(width, len(steps)))
    signs = [" "] * width
    before = ""
    for column, share in enumerate(shares):
        topic = steps[int(share[0])].topic
        if topic != before:
            room = width - column
            signs[column:] = f"{topic:<{room}}"[:room]
        before = topic
    return "".join(signs)


def _bar(now: float, before: float, top: float, width: int) -> Text:
    """Excess over a perfect balance: what is left of it, and what the moves have taken off."""

    def cells(value: float) -> int:
        return round((value - 1.0) / (top - 1.0) * width)

    left = min(width, cells(now))
    gone = min(width, max(left, cells(before))) - left
    return Text.assemble(("█" * left, "green" if now < before else "yellow"), ("░" * gone, "dim"))


def sparkline(values: Floats, width: int, top: float) -> str:
    """At most `width` signs for the whole series: each the mean of its share, from 1.0 to `top`."""
    if not len(values):
        return ""
    shares = np.array_split(values, min(width, len(values)))
    heights = [(float(share.mean()) - 1.0) / (top - 1.0) for share in shares]
    last = len(LEVELS) - 1
    return "".join(LEVELS[min(last, max(0, round(height * last)))] for height in heights)


def _facts(now: Snapshot, width: int) -> Table:
    steps, journal = now.record.steps, now.journal
    live, twin = (float(recent(steps, name).mean()) * 1e3 for name in ("live_s", "twin_s"))
    hook = float(np.median([step.hook_s for step in steps[-64:]])) * 1e6
    differing = sum(not step.identical.all() for step in steps)
    same = (
        Text(f"differ from the twin's in {differing} of {len(steps)} steps", "bold red")
        if differing
        else Text(f"the same bits as the twin's in all {len(steps)} steps", "green")
    )
    aborted = Text(f"{journal.aborted} aborted", "yellow" if journal.aborted else "")
    facts = _labelled(width)
    facts.add_row("steps", f"{len(steps)}, {len(steps) / max(now.elapsed_s, 1e-3):.1f} a second")
    facts.add_row("outputs", same)
    facts.add_row("forward", f"{live:.1f} ms, {twin:.1f} ms without the hook of {hook:.0f} µs")
    facts.add_row(
        "epochs",
        Text.assemble(
            f"{journal.settled} settled, ",
            aborted,
            f"; {journal.moves} moves, {journal.bytes / 2**20:.1f} MiB",
        ),
    )
    if journal.frozen:
        facts.add_row("frozen", Text(journal.frozen, "bold red"))
    return facts


def _log(lines: Sequence[LogLine], width: int) -> Table:
    """The daemon's last lines, one line each."""
    log = _labelled(width)
    for number, line in enumerate(lines):
        log.add_row(
            "daemon" if number == 0 else "", Text(words(line), LINE_STYLES.get(line.level, "dim"))
        )
    return log


def _labelled(width: int) -> Table:
    """Two columns; what is too long for one line of the second is cut."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=_LABEL)
    table.add_column(width=width - _LABEL - 1, no_wrap=True, overflow="ellipsis")
    return table
