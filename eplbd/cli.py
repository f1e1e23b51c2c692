"""The command line: parse, call, print. No logic, and no import before it is needed.

A command is a function of ten lines: `@main.command()`, `@configured` where it reads the
configuration, its imports inside. What eplbd raises on purpose ends as one message and status 1.
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
    from eplbd.runtime.policyhost import PolicyHostStatistics


class _Plain(click.Group):
    """Shows an error of eplbd as its text."""

    def invoke(self, ctx: click.Context) -> object:
        from eplbd.errors import EplbdError

        try:
            return super().invoke(ctx)
        except EplbdError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Plain, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="eplbd", prog_name="eplbd")
def main() -> None:
    """Expert-parallel load balancing for mixture-of-experts serving."""


def reading(command: Callable[[Callable[[], Loaded]], None]) -> Callable[..., None]:
    """Give a command `--config` and `-o`, and call it with what reads the configuration."""

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
    def given(file: Path | None, assignments: tuple[str, ...]) -> None:
        from eplbd.config import assigned, found, load

        command(lambda: load(found(file), os.environ, assigned(assignments)))

    return given


def configured(command: Callable[[Loaded], None]) -> Callable[..., None]:
    """Give a command `--config` and `-o`, and call it with what they amount to."""

    @functools.wraps(command)
    def loading(read: Callable[[], Loaded]) -> None:
        command(read())

    return reading(loading)


@main.command()
@reading
def serve(read: Callable[[], Loaded]) -> None:
    """Run the daemon until it is told to stop. SIGHUP reads the configuration again."""
    from eplbd.runtime.daemon import serve as run

    run(read, os.environ)


@main.command()
@configured
def check(loaded: Loaded) -> None:
    """Print the configuration in force and start its policy once. Status 1 if anything is wrong."""
    import anyio

    from eplbd.config import shown

    _table([(path, shown(value), origin) for path, value, origin in loaded.rows()])
    ready = anyio.run(_first_start, loaded)
    click.echo(f"\npolicy {ready.policy} of {ready.distribution} {ready.version} is ready")


@main.command()
@configured
def policies(loaded: Loaded) -> None:
    """List the policies of all enabled plugins, and what is wrong with those that offer none.

    The last error of a policy is what the daemon of this configuration had to say of it.
    """
    from eplbd.runtime.inventory import inventory

    rows, missing = inventory(loaded.config)
    _table(rows)
    if missing:
        click.echo(f"eplbd: {missing}", err=True)


@main.command()
@click.argument("given", metavar="FILE|JSON")
@click.option("--forward-ms", type=click.FloatRange(0.01), help="Turns counts of forwards to time.")
def translate(given: str, forward_ms: float | None) -> None:
    """Say an engine's own balancer configuration in the words of eplbd.toml.

    Takes what vLLM is given as --additional-config or --eplb-config. The fragment goes to standard
    output, what to know about it to standard error.
    """
    from eplbd.legacy import spelled
    from eplbd.legacy import translate as run

    found = run(spelled(given), forward_s=None if forward_ms is None else forward_ms / 1000)
    for warning in found.warnings:
        click.echo(f"eplbd: {warning}", err=True)
    click.echo(found.toml().rstrip())


@main.command()
@click.option(
    "--dispatch",
    type=click.Choice(["all-to-all", "replicated"]),
    default="all-to-all",
    show_default=True,
    help="How tokens reach the slots.",
)
@click.option("--ranks", type=click.IntRange(2, 16), default=4, show_default=True)
@click.option("--policy", default="greedy", show_default=True, help="See `eplbd policies`.")
@click.option("--trace", type=click.Path(path_type=Path), help="Replay recorded expert heat.")
@click.option("--seconds", type=click.FloatRange(5, 600), default=40.0, show_default=True)
@click.option("--steps", type=click.IntRange(16), help="Judge that many steps, however long.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", help="Write the figures to this file; - is stdout, with nothing else.")
@click.option("--break-map", "broken", is_flag=True, help="Corrupt one map entry: must be seen.")
@click.pass_context
def demo(ctx: click.Context, /, json: str | None, **options: object) -> None:
    """Serve a small mixture of experts on this CPU while a daemon balances it.

    Every step also runs through a twin whose experts never move. Outputs have to be its bits, and
    its load in the second half of the run is what the live ranks' is compared with: the same
    tokens on both placements. Status 0 means that outputs were identical, an epoch settled and the
    hottest rank was cooler; 1 that something of this failed, 130 that it was interrupted.
    """
    import msgspec

    from eplbd.demo.command import demo as run
    from eplbd.demo.settings import Options

    ctx.exit(run(msgspec.convert(options, Options), json))


async def _first_start(loaded: Loaded) -> PolicyHostStatistics:
    import structlog

    from eplbd.runtime.policyhost import PolicyHost

    quiet = structlog.wrap_logger(structlog.ReturnLogger())
    config = loaded.config
    async with PolicyHost(config.policy, config.plugins, where=loaded.where, log=quiet) as host:
        return host.statistics()


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
