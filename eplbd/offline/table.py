"""Figures as aligned text, and as JSON. Must not know what they mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from eplbd.errors import ConfigError


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names: the first to the left, figures to the right."""
    whole = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    lines = []
    for row in whole:
        first, rest = row[0].ljust(widths[0]), zip(row[1:], widths[1:], strict=True)
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in rest)]).rstrip())
    return "\n".join(lines)


def figure(value: object, digits: int = 3) -> str:
    """A figure for people; nothing known is a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def size(octets: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1000:
            return f"{octets:.0f} {unit}" if unit == "B" else f"{octets:.1f} {unit}"
        octets /= 1000
    return f"{octets:.1f} TB"


def emit_json(target: str, document: object) -> None:
    """Write JSON to a file, or to standard output for `-`. Raises ConfigError."""
    text = json.dumps(document, indent=2)
    if target == "-":
        click.echo(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {target}: cannot be written: {error.strerror}") from error
