"""A daemon in this process, with real sockets, files and policy child."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from eplbd.config import Log as LogSettings
from eplbd.config import load
from eplbd.runtime.daemon import Daemon
from eplbd.runtime.log import open_log
from tests.runtime.conftest import PATIENCE_S
from tests.runtime.process import write_config


@asynccontextmanager
async def serving(folder: Path, **keys: object) -> AsyncIterator[Daemon]:
    """A daemon that has begun to serve; keys as `section__name`."""
    file = write_config(folder, **keys)
    with (folder / "log").open("wb") as out, open_log(LogSettings(), {}, out.fileno()) as log:
        made = Daemon(load(file), lambda: load(file), log, {})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.run)
            with anyio.fail_after(PATIENCE_S):
                while not made.ready:  # noqa: ASYNC110 - what an operator sees as READY
                    await anyio.sleep(0.005)
            yield made
            tasks.cancel_scope.cancel()
