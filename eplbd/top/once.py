"""One picture as text: for a pipe, a log, or a terminal without what draws.

Owns the order of the parts on a page of any length.
"""

from __future__ import annotations

import shutil

from eplbd.config import Config
from eplbd.runtime.follow import follow
from eplbd.top.heat import LEGEND, heat_lines
from eplbd.top.history import History, Story
from eplbd.top.panels import (
    budget_lines,
    epochs_lines,
    epochs_title,
    header_lines,
    notes_lines,
    notes_title,
    policies_lines,
    ranks_lines,
    ranks_title,
)
from eplbd.top.wording import Line, cut, plain
from eplbd.wire.stream import Group, Snapshot

LAYERS, RANKS, EPOCHS, POLICIES, NOTES = 64, 33, 9, 12, 8
"""Lines that a part may take, its head included."""

NARROWEST, WIDEST = 60, 160


async def once(config: Config) -> str:
    """Ask the daemon of this configuration how it stands, and draw it.

    Raises:
        ConfigError: There is none, or it does not answer.
    """
    history = History()
    with follow(config) as follower:
        history.take(await follower.catch_up())
    return page(history, page_width())


def page_width() -> int:
    """Of the terminal, or of $COLUMNS; through a pipe 100."""
    columns = shutil.get_terminal_size((100, 24)).columns
    return min(max(columns, NARROWEST), WIDEST)


def page(history: History, width: int) -> str:
    """Everything that is known, one group below the other; no line is wider than `width`."""
    snapshot = history.snapshot
    groups = snapshot.groups if snapshot else ()
    lines: list[str] = []
    for index in range(max(1, len(groups))):
        group = history.group(index)
        lines += map(plain, header_lines(history, group, 0.0, width))
        if snapshot is not None and group is not None:
            lines += _parts(snapshot, group, history.story(group.name), width)
    lines += _part(notes_title(snapshot), notes_lines(history, width, NOTES), width)
    return "\n".join(lines) + "\n"


def _parts(snapshot: Snapshot, group: Group, story: Story, width: int) -> list[str]:
    return [
        *_part(f"load of ranks: {LEGEND}", heat_lines(group, story, width, LAYERS), width),
        *_part(
            ranks_title(group), ranks_lines(group, width, min(RANKS, len(group.ranks) + 1)), width
        ),
        *_part(epochs_title(group), epochs_lines(group, story, width, EPOCHS), width),
        *_part("policies", policies_lines(snapshot, group, story, width, POLICIES), width),
        *_part("budget", budget_lines(group, width, 3), width),
    ]


def _part(title: str, lines: list[Line], width: int) -> list[str]:
    return ["", cut(f"[{title}]", width), *map(plain, lines)]
