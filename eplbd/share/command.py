"""`eplbd share`: files to start from. Parse, call, print, as in `eplbd.cli`."""

from __future__ import annotations

from pathlib import Path

import click

from eplbd.share.printed import PRINTED, doubts, printed


@click.group()
def share() -> None:
    """Write or print files to start from."""


@share.command("policy-template")
@click.argument("name")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
def policy_template(name: str, directory: Path | None) -> None:
    """Write a package for a new policy NAME into DIRECTORY, by default eplbd-policy-NAME.

    It is complete: an entry point, a policy that works, and tests that hold it to the contract.
    """
    from eplbd.share.template import write_policy_template  # noqa: PLC0415 - as in eplbd.cli

    for path in write_policy_template(name, directory):
        click.echo(f"wrote {path}")


def _offer(name: str, about: str) -> None:
    @share.command(name, help=about)
    def shown() -> None:
        click.echo(printed(name), nl=False)
        for doubt in doubts(name):
            click.echo(f"eplbd: {doubt}", err=True)


for _name, (_, _about) in PRINTED.items():
    _offer(_name, _about)
