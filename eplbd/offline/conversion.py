"""`eplbd convert`: convert, then say what was done and what was lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from eplbd.offline.convert import convert
from eplbd.offline.formats.content import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was asked for; None where the files are to say it."""

    source: Path
    target: Path
    read_as: str | None = None
    write_as: str | None = None
    ranks: int | None = None
    topk: int | None = None
    first_layer: int | None = None


def command(asked: Conversion) -> None:
    """Convert; what was done goes to standard output, notes to standard error."""
    context = Context(asked.ranks, asked.topk, asked.first_layer)
    done = convert(
        asked.source,
        asked.target,
        read_as=asked.read_as,
        write_as=asked.write_as,
        context=context,
    )
    click.echo(done)
    for note in context.notes:
        click.echo(f"note: {note}", err=True)
