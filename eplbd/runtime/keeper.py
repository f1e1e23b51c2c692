"""What must not be forgotten, on its way to the disk: off the loop, one file after another.

Owns what still waits to be written and which of it counts: the newest. A disk that refuses costs a
line, or an event where the core has to know. Must not know what a record looks like: that is
`store` and `faults`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import anyio
import anyio.to_thread

from eplbd.core.events import Note, Persist, PersistFailed, RememberFault
from eplbd.runtime.faults import write_faults
from eplbd.runtime.store import Store

Remembered: TypeAlias = Persist | RememberFault


class Keeper:
    """Takes what is to be kept and never waits; its task is `run`.

    say: what is worth a line. refused: told of every record that the disk did not take.
    """

    def __init__(
        self,
        store: Store,
        directory: Path,
        say: Callable[[Note], None],
        refused: Callable[[PersistFailed], None],
    ) -> None:
        self._store, self._directory = store, directory
        self._say, self._refused = say, refused
        self._records: dict[str, Persist] = {}
        self._faults: dict[str, RememberFault] = {}
        self._wanted, self._done = anyio.Event(), anyio.Event()

    def take(self, effect: Remembered) -> None:
        """Write it soon; of a group's records and of a policy's faults, only the newest."""
        if isinstance(effect, Persist):
            self._records[effect.group] = effect
        else:
            self._faults[effect.policy] = effect
        self._wanted.set()

    async def run(self) -> None:
        """Write, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            for record in list(self._records.values()):
                await self._write(record)
            await self.write_faults()
            self._done.set()
            self._done = anyio.Event()

    async def finish(self) -> None:
        """Return once nothing waits to be written, while `run` runs."""
        while self._records or self._faults:
            await self._done.wait()

    async def _write(self, record: Persist) -> None:
        try:
            await anyio.to_thread.run_sync(self._store.write, record)
        except OSError as error:
            self._refused(PersistFailed(record.group, str(error)))
        if self._records[record.group] is record:
            del self._records[record.group]
        for note in await anyio.to_thread.run_sync(lambda: [*self._store.tidy()]):
            self._say(note)

    async def write_faults(self) -> None:
        """Keep what the policies did wrong; that it cannot be kept is worth a line, no more."""
        faults, self._faults = self._faults, {}
        try:
            await anyio.to_thread.run_sync(write_faults, self._directory, faults)
        except OSError as error:
            self._say(Note("warning", "policy faults not stored", {"reason": str(error)}))
