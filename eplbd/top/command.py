"""`eplbd top`: a picture that lives, or one of this moment.

Owns which of the two, and what a key's command is in the words of `eplbd ctl`. What draws on a
terminal is an extra and imported where it is used: a picture through a pipe needs nothing of it.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import click

from eplbd.config import Config
from eplbd.core import commands as c
from eplbd.errors import ConfigError
from eplbd.runtime.caller import call, whoever
from eplbd.runtime.follow import follow
from eplbd.top.once import once as picture
from eplbd.wire import control

if TYPE_CHECKING:
    from eplbd.top.question import Reply


def top(config: Config, *, once: bool) -> None:
    """Show what the daemon of this configuration does.

    Raises:
        ConfigError: There is no such daemon, or nothing to draw on.
    """
    if once:
        click.echo(anyio.run(picture, config), nl=False)
        return
    if not sys.stdout.isatty():
        raise ConfigError("standard output is no terminal; `eplbd top --once` prints one picture")
    ended = anyio.run(_watch, config)
    if ended:
        raise ConfigError(ended)


async def _watch(config: Config) -> str | None:
    try:
        from eplbd.top.app import Top  # noqa: PLC0415 - an extra, and half a second
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"eplbd top: no {error.name}: pip install 'eplbd[top]'; --once needs no extra"
        ) from error
    with follow(config) as follower:
        commands = functools.partial(command, config)
        return await Top(follower, commands, interval_s=config.stream.interval_s).run_async()


async def command(config: Config, verb: str, group: str, reply: Reply) -> str:
    """Do what a key stands for; what the daemon says of it.

    Raises:
        ConfigError: It is refused, or nobody answers.
    """
    requests: dict[str, control.Request] = {
        "pause": c.Pause(group),
        "freeze": c.Freeze(group),
        "resume": c.Resume(group),
        "rollback": control.Rollback(group=group),
        "promote": control.Promote(reply.choice),
    }
    calling = functools.partial(
        call, config, requests[verb], who=whoever(os.environ), why=reply.why
    )
    match await anyio.to_thread.run_sync(calling, abandon_on_cancel=True):
        case control.Done(told):
            return told
        case control.Refused(reason):
            raise ConfigError(reason)
        case answer:
            raise ConfigError(f"an answer to another question: {type(answer).__name__}")
