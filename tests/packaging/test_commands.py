"""COMMANDS.md is what `--help` says of every command: made from the commands, and compared.

`EPLBD_UPDATE=1` writes it anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from eplbd.cli import main

DOCUMENT = Path(__file__).resolve().parents[2] / "COMMANDS.md"
OPENING = """\
# Commands

What `eplbd COMMAND --help` says. The daemon's settings are in [`eplbd.toml`](eplbd.toml), what to
do with all this in [`OPERATIONS.md`](OPERATIONS.md).

"""
COLUMNS = 100


def commands(
    command: click.Command, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """A command and all below it, each in its context."""
    name = command.name if parent is not None else "eplbd"
    context = click.Context(
        command, parent, name, terminal_width=COLUMNS, help_option_names=["-h", "--help"]
    )
    yield context
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from commands(command.commands[below], context)


def page() -> str:
    """The document as it ought to be."""
    sections = [
        f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n"
        for context in commands(main)
    ]
    return OPENING + "\n".join(sections)


def test_the_document_says_what_the_commands_say() -> None:
    if os.environ.get("EPLBD_UPDATE"):
        DOCUMENT.write_text(page(), "utf-8")
    assert DOCUMENT.read_text("utf-8") == page(), "EPLBD_UPDATE=1 writes it anew"


def test_every_command_says_what_it_does() -> None:
    silent = [context.command_path for context in commands(main) if not context.command.help]
    assert not silent
