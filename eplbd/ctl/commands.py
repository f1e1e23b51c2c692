"""The subcommands of `eplbd ctl`: parse, call, print.

Each is one request and its reply; status 1 and the reason where it is refused. What a command does
is decided, and said, by the daemon. No import before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from eplbd.given import configured

if TYPE_CHECKING:
    from eplbd.config import Loaded
    from eplbd.wire import control

R = TypeVar("R")


@click.group()
def ctl() -> None:
    """Give orders to a running daemon, and see how it stands.

    Whoever may write to the control socket may give orders: root and the daemon's user, unless
    control.socket_mode says otherwise. Every order leaves one line in the daemon's log, with who
    gave it, why (--why), and what came of it.
    """


def order(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the configuration, `--group` and `--why`."""
    for option in (
        click.option("--why", default="no reason given", help="For the record."),
        click.option("--group", default="", help="Which EP group, where there are several."),
        configured,
    ):
        command = option(command)
    return command


def _ask(loaded: Loaded, request: control.Request, kind: type[R], why: str) -> R:
    """The daemon's reply. Raises ConfigError with its reason where it refuses."""
    import os

    from eplbd.errors import ConfigError, RemoteProtocolError
    from eplbd.runtime.caller import call, whoever
    from eplbd.wire.control import Refused

    reply = call(loaded.config, request, who=whoever(os.environ), why=why)
    if isinstance(reply, Refused):
        raise ConfigError(reply.reason)
    if not isinstance(reply, kind):
        raise RemoteProtocolError(f"expected {kind.__name__}, the daemon said {reply!r:.200}")
    return reply


def _tell(loaded: Loaded, request: control.Request, why: str) -> None:
    from eplbd.wire.control import Done

    click.echo(_ask(loaded, request, Done, why).told)


@ctl.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
def status(loaded: Loaded, *, as_json: bool) -> None:
    """Say how the daemon, its groups and their ranks stand, and what is ordered."""
    from eplbd.ctl.standing import lines
    from eplbd.runtime.status import read_document
    from eplbd.wire.control import Stated, Status

    encoded = _ask(loaded, Status(), Stated, "status").document.tobytes()
    click.echo(encoded.decode() if as_json else "\n".join(lines(read_document(encoded))))


@ctl.command()
@order
def pause(loaded: Loaded, *, group: str, why: str) -> None:
    """Let the policy rest; rollback, load and drain still work. Ends with resume or a restart.

    Without --group every group is paused, those to come included. What is frozen is paused instead,
    so that orders get through.
    """
    from eplbd.core.commands import Pause

    _tell(loaded, Pause(group), why)


@ctl.command()
@order
def freeze(loaded: Loaded, *, group: str, why: str) -> None:
    """Let no placement change until resume, not even over a restart of the daemon.

    An epoch under way is given up, if it is not decided yet. Without --group every group.
    """
    from eplbd.core.commands import Freeze

    _tell(loaded, Freeze(group), why)


@ctl.command()
@order
def resume(loaded: Loaded, *, group: str, why: str) -> None:
    """Lift pause and freeze; a policy that was suspended is asked again."""
    from eplbd.core.commands import Resume

    _tell(loaded, Resume(group), why)


@ctl.command()
@order
def force(loaded: Loaded, *, group: str, why: str) -> None:
    """Ask the policy now, and take its answer whatever it gains."""
    from eplbd.core.commands import Force

    _tell(loaded, Force(group), why)


@ctl.command()
@click.argument("name", required=False, default="")
@order
def rollback(loaded: Loaded, *, name: str, group: str, why: str) -> None:
    """Go back to the placement before the last rebalance, or to the one saved as NAME.

    The policy is paused then, so that the placement stays.
    """
    from eplbd.wire.control import Rollback

    _tell(loaded, Rollback(name, group), why)


@ctl.command()
@click.argument("name")
@order
def save(loaded: Loaded, *, name: str, group: str, why: str) -> None:
    """Keep the placement in force as NAME, in the daemon's state directory."""
    from eplbd.core.commands import Save

    _tell(loaded, Save(name, group), why)


@ctl.command()
@click.argument("what", metavar="FILE|NAME")
@order
def load(loaded: Loaded, *, what: str, group: str, why: str) -> None:
    """Go to the placement of a FILE, or to the one saved as NAME.

    A FILE is an .npz that eplbd wrote, or vllm-ascend's expert map (.json); a word without a slash
    and without such an end is a NAME. The policy is paused then, so that the placement stays.
    """
    from eplbd.ctl.files import placed

    _tell(loaded, placed(what, group), why)


def expert(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an expert and, perhaps, a layer."""
    for option in (
        click.option("--layer", type=click.IntRange(0), help="Without it, every layer."),
        click.argument("expert", type=click.IntRange(0)),
    ):
        command = option(command)
    return command


@ctl.command()
@expert
@order
def pin(loaded: Loaded, *, expert: int, layer: int | None, group: str, why: str) -> None:
    """Keep the replicas of EXPERT on their ranks, over restarts.

    A layer in which a policy would move it keeps everything it has.
    """
    from eplbd.core.commands import Pin

    _tell(loaded, Pin(expert, layer, group), why)


@ctl.command()
@expert
@order
def unpin(loaded: Loaded, *, expert: int, layer: int | None, group: str, why: str) -> None:
    """Let EXPERT move again; without --layer, every pin of it goes."""
    from eplbd.core.commands import Unpin

    _tell(loaded, Unpin(expert, layer, group), why)


@ctl.command()
@click.argument("rank", type=click.IntRange(0))
@order
def drain(loaded: Loaded, *, rank: int, group: str, why: str) -> None:
    """Make RANK one that can be spared, and keep it so, over restarts.

    Every expert that it holds is held elsewhere as well, and no policy is shown it. Its slots stay
    filled, with experts that get few tokens, or none where the engine takes shares.
    """
    from eplbd.core.commands import Drain

    _tell(loaded, Drain(rank, group), why)


@ctl.command()
@click.argument("rank", type=click.IntRange(0))
@order
def undrain(loaded: Loaded, *, rank: int, group: str, why: str) -> None:
    """Let policies use RANK again."""
    from eplbd.core.commands import Undrain

    _tell(loaded, Undrain(rank, group), why)


@ctl.command()
@click.option("--max-moves", type=click.IntRange(0), help="Of one rebalance; 0 is no limit.")
@click.option("--inflation-ceiling", type=float, help="A forward, times this, while weights move.")
@click.option("--why", default="no reason given", help="For the record.")
@configured
def budget(
    loaded: Loaded, *, max_moves: int | None, inflation_ceiling: float | None, why: str
) -> None:
    """Change what a rebalance may cost, until the configuration is read again."""
    from eplbd.wire.control import Budget

    _tell(loaded, Budget(max_moves, inflation_ceiling), why)


@ctl.command()
@click.argument("policy")
@click.option("--why", default="no reason given", help="For the record.")
@configured
def promote(loaded: Loaded, *, policy: str, why: str) -> None:
    """Put POLICY in charge, until the configuration is read again.

    A shadow brings its options along; any other begins with its defaults. It plans from the
    placement in force. Takes as long as the policy takes to start.
    """
    from eplbd.wire.control import Promote

    _tell(loaded, Promote(policy), why)


@ctl.group()
def heat() -> None:
    """Get at the heat that policies are shown."""


@heat.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@order
def dump(loaded: Loaded, *, path: Path, group: str, why: str) -> None:
    """Write the window of heat to FILE (.npz), as a trace for simulate, diagnose and plot."""
    from eplbd.core.commands import DumpHeat
    from eplbd.ctl.files import dump as write
    from eplbd.wire.control import Dumped

    click.echo(write(path, _ask(loaded, DumpHeat(group), Dumped, why)))
