"""The configuration in force, and the ways in which it changes while the daemon runs.

Owns which configuration that is: the one read last, with what an operator adjusted since. Changes
come one after another, each whole or not at all. Must not know where a change comes from, nor what
a setting does.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.to_thread

from eplbd.config import Loaded
from eplbd.core import events as e
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError, PolicyError
from eplbd.runtime.fixedmap import load_map
from eplbd.runtime.log import Log
from eplbd.runtime.policydesk import PolicyDesk
from eplbd.runtime.tuning import FIXED, changed_keys, settings_of


class Reloading:
    """Keeps the configuration and tells the core and the policies of every change.

    read_again: blocks. log: whose level is one of the settings. take: steps the core. say: what is
    worth a line.
    """

    def __init__(
        self,
        loaded: Loaded,
        read_again: Callable[[], Loaded],
        log: Log,
        take: Callable[[e.Reconfigured], None],
        say: Callable[[e.Note], None],
    ) -> None:
        self.loaded = loaded
        self._started_with = loaded.config
        self._read_again, self._log, self._take, self._say = read_again, log, take, say
        self._fixed = load_map(loaded)
        self._turn = anyio.Lock()
        self.failed = False
        """Whether the newest attempt to read it again was refused."""

    @property
    def fixed(self) -> Placement | None:
        """What `balance.map` holds."""
        return self._fixed

    async def reload(self, desk: PolicyDesk) -> None:
        """Read it again; what was adjusted since the last time is gone. Says what is wrong."""
        async with self._turn:
            try:
                loaded = await anyio.to_thread.run_sync(self._read_again)
                fixed = await anyio.to_thread.run_sync(load_map, loaded)
                changed = await self._seat(loaded, desk)
            except (ConfigError, PolicyError) as error:
                self.failed = True
                self._say(e.Note("error", "configuration not reloaded", {"reason": str(error)}))
            else:
                self.failed = False
                self._apply(loaded, changed, fixed)
                self._say(e.Note("info", "configuration reloaded", {"changed": changed}))
                self._say_what_waits()

    async def adjust(self, change: Callable[[Loaded], Loaded], desk: PolicyDesk) -> None:
        """Change what is in force, until it is read again.

        Raises:
            ConfigError: The result makes no sense, or there is no such policy.
            PolicyError: The policy cannot start.
        """
        async with self._turn:
            loaded = change(self.loaded)
            self._apply(loaded, await self._seat(loaded, desk), self._fixed)

    async def _seat(self, loaded: Loaded, desk: PolicyDesk) -> list[str]:
        """Start the policies of another configuration; the keys that it changes."""
        changed = changed_keys(self.loaded.config, loaded.config)
        if any(map(_about_policies, changed)):
            await desk.open(loaded)
        return changed

    def _apply(self, loaded: Loaded, changed: list[str], fixed: Placement | None) -> None:
        self.loaded, self._fixed = loaded, fixed
        self._log.set_level(loaded.config.log.level)
        policies = any(map(_about_policies, changed))
        self._take(e.Reconfigured(settings_of(loaded.config, fixed), policies))

    def _say_what_waits(self) -> None:
        waiting = FIXED.intersection(changed_keys(self._started_with, self.loaded.config))
        if waiting:
            keys = sorted(waiting)
            self._say(e.Note("warning", "settings wait for a restart", {"keys": keys}))


def _about_policies(key: str) -> bool:
    return key.startswith(("policy.", "plugins."))
