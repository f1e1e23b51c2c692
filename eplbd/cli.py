"""The command line: parse, call, print. No logic, and no import before it is needed.

A command is a function of ten lines: `@main.command()`, `@configured` where it reads the
configuration, its imports inside. What eplbd raises on purpose ends as one message and status 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from eplbd.ctl.commands import ctl
from eplbd.given import configured, reading
from eplbd.share.command import share

if TYPE_CHECKING:
    from eplbd.config import Loaded
    from eplbd.offline.settings import Options


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


main.add_command(ctl)


@main.command()
@reading
def serve(read: Callable[[], Loaded]) -> None:
    """Run the daemon until it is told to stop. SIGHUP reads the configuration again."""
    from eplbd.runtime.daemon import serve as run

    run(read, os.environ)


@main.command()
@configured
def check(loaded: Loaded) -> None:
    """Print the configuration in force and start its policies once. Status 1 if something is wrong.

    That is the policy in charge and every shadow; a map of mode static is read as well, and with
    cluster.listen this node's keys, and those that it trusts.
    """
    import anyio

    from eplbd.config import shown
    from eplbd.runtime.fixedmap import load_map
    from eplbd.runtime.identity import described, identity
    from eplbd.runtime.policydesk import start_once

    _table([(path, shown(value), origin) for path, value, origin in loaded.rows()])
    fixed = load_map(loaded)
    click.echo()
    if fixed is not None:
        shape = " x ".join(map(str, fixed.slots.shape))
        click.echo(f"map of {shape} slots, {fixed.experts} experts, digest {fixed.digest} is ready")
    known = identity(loaded.config, os.environ)
    for line in described(known, loaded.config.balance) if known is not None else ():
        click.echo(line)
    for seat, ready in anyio.run(start_once, loaded).items():
        role = "shadow" if seat else "policy"
        click.echo(f"{role} {ready.policy} of {ready.distribution} {ready.version} is ready")


@main.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="/etc/eplbd/keys",
    show_default=True,
    help="Where to put the pair; made if it is missing.",
)
def keygen(folder: Path) -> None:
    """Make the pair of keys that this node's daemon proves itself with to those of other nodes.

    An existing pair is never overwritten.
    """
    from eplbd.runtime.keys import generate

    pair = generate(folder)
    click.echo(f"{folder}/node.key_secret is this node's alone: nothing else may read or copy it")
    click.echo(f"{folder}/node.key is for all others: public key {pair.public.decode()}")
    click.echo(
        "Copy node.key to every other node, into its cluster.trust_dir (/etc/eplbd/trust) as "
        "NAME-OF-THIS-NODE.key, and theirs to this node; then set cluster.listen and restart, or "
        "reload where that was done before."
    )


@main.command()
@configured
@click.option("--once", is_flag=True, help="Print one picture as text, and end.")
def top(loaded: Loaded, *, once: bool) -> None:
    """Watch a running daemon: load of ranks, epochs, policies, budget; and steer it, by keys.

    Reads the daemon's event stream, on the sockets of the same configuration. Every key that
    changes something asks for a reason first, and does what `eplbd ctl` would.
    """
    from eplbd.top.command import top as run

    run(loaded.config, once=once)


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


main.add_command(share)


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


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give an offline command the group and the policies that it is about."""
    for option in (
        click.option("--network-gbps", type=float, default=20.0, show_default=True),
        click.option(
            "--node-gbps",
            type=float,
            default=100.0,
            show_default=True,
            help="Gigabytes per second of a rank, within a node and between nodes.",
        ),
        click.option("--expert-bytes", type=click.IntRange(1), help="Default: 44 MB."),
        click.option("--max-bytes", type=click.IntRange(0), help="Of one plan."),
        click.option("--max-moves", type=click.IntRange(0), help="Of one plan."),
        click.option("--weighted", is_flag=True, help="The engine takes shares per replica."),
        click.option(
            "--initial",
            default="linear",
            show_default=True,
            help="Layout at the start: linear, spread, recorded or a placement file.",
        ),
        click.option("--phase", default="all", show_default=True, help="all, prefill or decode"),
        click.option("--windows", type=click.IntRange(2), default=12, show_default=True),
        click.option("--module", "modules", multiple=True, help="A plugin that is not installed."),
        click.option("--option", multiple=True, metavar="POLICY.KEY=VALUE"),
        click.option("--nodes", type=click.IntRange(1), help="Default: 1, or as recorded."),
        click.option("--slots", type=click.IntRange(1), help="Per rank; default: one redundant."),
        click.option("--ranks", type=click.IntRange(1), help="Default: as recorded."),
    ):
        command = option(command)
    return command


_TRACE = click.Path(path_type=Path)
_SAID = click.core.ParameterSource.COMMANDLINE
_OF_ANY = {"ranks", "slots", "policy"}
_OF_CLUSTER = {
    *("ranks_per_node", "layers", "experts", "forwards_per_second", "seconds", "latency_ms"),
    *("loss", "partition", "skew", "seed", "busy", "plot"),
}


def clustered(command: Callable[..., None]) -> Callable[..., None]:
    """Give `simulate` what it is to know of a made-up group."""
    for option in (
        click.option("--plot", type=click.Path(path_type=Path), help="Of 8 to --ranks ranks."),
        click.option("--busy", is_flag=True, help="The leader answers as late as it takes here."),
        click.option("--seed", type=click.IntRange(0)),
        click.option("--skew", type=click.FloatRange(0, 0.1), help="Between hosts' clocks."),
        click.option("--partition", multiple=True, metavar="AT:SECONDS:NODES"),
        click.option("--loss", type=click.FloatRange(0, 0.9), help="Lost, and said twice."),
        click.option("--latency-ms", type=click.FloatRange(0), help="Between nodes; default 0.5."),
        click.option("--seconds", type=click.FloatRange(1), help="Default: 30."),
        click.option("--forwards-per-second", type=click.FloatRange(0.1), help="Default: 50."),
        click.option("--experts", type=click.IntRange(1), help="Default: 256."),
        click.option("--layers", type=click.IntRange(1), help="Default: 58."),
        click.option("--ranks-per-node", type=click.IntRange(1), help="Default: 8."),
        click.option(
            "--cluster",
            is_flag=True,
            help="Simulate all daemons and agents of a group instead, by default of 1024 ranks x 9 "
            "slots, and say what its control plane costs. The options after this one are for it.",
        ),
    ):
        command = option(command)
    return command


@main.command()
@grouped
@click.option("--policy", help="Names between commas; default: as eplbd.toml's default.")
@click.option("--json", help="Write the rows to this file; - is stdout, with nothing else.")
@click.option("--report", type=click.Path(path_type=Path), help="Write an HTML page.")
@click.option("--step-ms", default=50.0, show_default=True, help="A forward; for the report.")
@click.option("--moe-share", default=0.3, show_default=True, help="Of it, waits for hottest rank.")
@clustered
@click.argument("trace", type=_TRACE, required=False)
@click.pass_context
def simulate(ctx: click.Context, /, json: str | None, *, cluster: bool, **options: object) -> None:
    """Plan with each policy on every window of a TRACE, and judge it on the window after.

    With --cluster there is no trace: real daemons and agents run over a simulated network.
    """
    import msgspec

    given = {name for name in options if ctx.get_parameter_source(name) is _SAID}
    strange = given - _OF_ANY - _OF_CLUSTER if cluster else given & _OF_CLUSTER
    for name in sorted(strange):
        what = "a TRACE, not for" if cluster else "a group that is made up: give"
        raise click.UsageError(f"{name.replace('_', '-')} is for {what} --cluster")
    if cluster:
        from eplbd.offline.cluster.command import Options, command

        said = msgspec.convert({name: options[name] for name in given - {"plot"}}, Options)
        command(said, json, cast("Path | None", options["plot"]))
        return
    from eplbd.offline.simulation import command as replay
    from eplbd.offline.terms import Terms

    if options["trace"] is None:
        raise click.UsageError("give a TRACE, or --cluster")
    report = cast("Path | None", options["report"])
    replay(_offline(options), msgspec.convert(options, Terms), json, report)


@main.command()
@grouped
@click.argument("trace", type=_TRACE)
@click.option("--policy", help="One; default: as eplbd.toml's default.")
@click.option("--step-ms", default=50.0, show_default=True, help="A forward, without a balancer.")
@click.option("--moe-share", default=0.3, show_default=True, help="Of it, waits for hottest rank.")
@click.option("--min-gain", default=0.01, show_default=True, help="Share of a forward, to bother.")
@click.option("--horizon-s", default=600.0, show_default=True, help="A plan's life, if untold.")
@click.option("--row-steps", type=float, help="Forwards per row; default: as the trace says.")
@click.option("--json", help="Write the verdict to this file; - is stdout, with nothing else.")
def diagnose(json: str | None, **options: object) -> None:
    """Say whether balancing a TRACE pays: enable, tune or leave off, in milliseconds and why."""
    import msgspec

    from eplbd.offline.diagnosis import command
    from eplbd.offline.terms import Terms

    command(_offline(options), msgspec.convert(options, Terms), json)


@main.command()
@grouped
@click.argument("trace", type=_TRACE)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--policy", default="hold", show_default=True, help="Names between commas.")
@click.option("--against", type=click.Path(path_type=Path), help="A second placement.")
def plot(out: Path, against: Path | None, **options: object) -> None:
    """Draw a TRACE, with what policies make of it given --ranks, or a placement, as png or svg."""
    from eplbd.offline.drawing import command

    command(_offline(options), out, against)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--from", "read_as", metavar="FORMAT", help="Where the file does not show it.")
@click.option("--to", "write_as", metavar="FORMAT", help="Where its name does not say it.")
@click.option("--ranks", type=click.IntRange(1), help="Of a placement that does not tell.")
@click.option("--topk", type=click.IntRange(1), help="Experts per token, if SOURCE is silent.")
@click.option("--first-layer", type=click.IntRange(0), help="Number of the first MoE layer.")
def convert(**options: object) -> None:
    """Convert a trace or a placement: eplbd, vllm-ascend, SGLang, TensorRT-LLM, Omni."""
    import msgspec

    from eplbd.offline.conversion import Conversion, command

    command(msgspec.convert(options, Conversion))


def _offline(options: dict[str, object]) -> Options:
    import msgspec

    from eplbd.config import Policy
    from eplbd.offline.settings import Options

    named = {"policy": options["policy"] or Policy().name}
    return msgspec.convert(options | named, Options)


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
