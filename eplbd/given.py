"""`--config` and `-o`: how every command that is about a daemon is told which one.

Owns the two options. Must not know what a command does with the configuration.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from eplbd.config import Loaded


def reading(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--config` and `-o`, and call it with what reads the configuration first."""

    @click.option(
        "--config",
        "file",
        envvar="EPLBD_CONFIG",
        type=click.Path(path_type=Path),
        help="Configuration file; without it /etc/eplbd/eplbd.toml where there is one.",
    )
    @click.option(
        "-o",
        "assignments",
        metavar="SECTION.KEY=VALUE",
        multiple=True,
        help="Override one setting; may be repeated.",
    )
    @functools.wraps(command)
    def given(file: Path | None, assignments: tuple[str, ...], **options: object) -> None:
        # Late: `eplbd --version` must not pay for it.
        from eplbd.config import assigned, found, load  # noqa: PLC0415

        command(lambda: load(found(file), os.environ, assigned(assignments)), **options)

    return given


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--config` and `-o`, and call it with what they amount to first."""

    @functools.wraps(command)
    def loading(read: Callable[[], Loaded], **options: object) -> None:
        command(read(), **options)

    return reading(loading)
