"""Figures and foreign text as they are shown in a cell of a terminal.

Owns units, cutting and what a cell is. Text of a daemon may come from a worker or a policy: nothing
that a terminal would obey gets through. Must not know what is shown where.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Span(NamedTuple):
    """Text of one tone.

    tone: good, warn, bad, dim or head; `heat:137` for a load of 137 percent; empty for plain text.
    """

    text: str
    tone: str = ""


Line: TypeAlias = tuple[Span, ...]

_SECONDS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def duration(seconds: float | None) -> str:
    """`0.3 s`, `12 s`, `3.5 min`, `2.1 d`; a dash where there is none."""
    if seconds is None:
        return "-"
    for size, unit in _SECONDS:
        if seconds >= size:
            return _short(seconds / size, unit)
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1e3:.0f} ms"


def size(nbytes: float) -> str:
    """`528 MB`; decimal, as bandwidths are."""
    for unit_bytes, unit in _BYTES:
        if nbytes >= unit_bytes:
            return _short(nbytes / unit_bytes, unit)
    return f"{nbytes:.0f} B"


def _short(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def tight(figure: str) -> str:
    """A figure with its unit, for a narrow column."""
    return figure.replace(" ", "")


def ratio(value: float) -> str:
    """A PAR or an inflation; a dash for 0, which is none."""
    return f"{value:.2f}" if value else "-"


def printable(text: str) -> str:
    """Without anything that moves a cursor or changes a colour."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def cut(text: str, width: int) -> str:
    """At most `width` characters, the last an ellipsis where something is missing."""
    text = printable(text)
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if width > 0 else ""


def left(text: str, width: int, tone: str = "") -> Span:
    """A cell of exactly `width`."""
    return Span(cut(text, width).ljust(max(0, width)), tone)


def right(text: str, width: int, tone: str = "") -> Span:
    """A cell of exactly `width`, for figures."""
    return Span(cut(text, width).rjust(max(0, width)), tone)


def fitted(line: Line, width: int) -> Line:
    """The line, cut to `width`."""
    found: list[Span] = []
    for span in line:
        if width <= 0:
            break
        found.append(Span(cut(span.text, width), span.tone))
        width -= len(found[-1].text)
    return tuple(found)


def plain(line: Line) -> str:
    """The text of a line, for a pipe."""
    return "".join(span.text for span in line).rstrip()
