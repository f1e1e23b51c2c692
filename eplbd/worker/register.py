"""The decision register: write-once keys, and whoever writes first decides for everybody.

Beside them it keeps names, which the newest value holds: that is a notice board, and decides
nothing. Owns the contract and the register of one process, for tests with threads as ranks. It must
not know what a key decides, nor epochs: naming keys and choosing proposals is the agent's matter.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from eplbd.core.messages import Verdict
from eplbd.errors import EplbdError


class RegisterError(EplbdError):
    """The register's store did not answer in time. The key may be decided or not: ask again."""


class DecisionRegister(Protocol):
    """Compare-and-set on keys that were never written.

    Called from one registrar thread, never from the forward thread: an answer may take as long as
    `deadline_s`.
    """

    def decide(self, key: str, proposal: Verdict, *, deadline_s: float) -> Verdict:
        """Write `proposal` unless `key` holds a verdict already; return what `key` holds now.

        Everybody who ever asks for `key` gets the same answer. Asking again is safe, and is how a
        verdict is read. Raises RegisterError, naming the key, where no answer came within
        `deadline_s`: the proposal may still take effect later, so nothing may be concluded.
        """
        ...

    def forget(self, key: str, *, deadline_s: float) -> None:
        """Remove `key`, a hundred-odd bytes in the memory of the store's host.

        Only for a key that nobody will ask again: after this, the next proposal decides anew. An
        epoch's keys qualify once every rank has reported how that epoch ended. A write that is
        still under way when its key is forgotten creates it again, which nobody reads. Forgetting
        an absent key does nothing. Raises RegisterError as `decide` does.
        """
        ...

    def publish(self, name: str, value: str, *, deadline_s: float) -> None:
        """Let `name` hold `value`, whatever it held. Raises RegisterError as `decide` does."""
        ...

    def look(self, name: str, *, deadline_s: float) -> str:
        """What was published under `name` last; empty where nothing was, without waiting for it.

        Raises RegisterError as `decide` does.
        """
        ...

    def claim(self, name: str, *, deadline_s: float) -> bool:
        """Whether nobody has claimed `name` before, on any rank. RegisterError as `decide`."""
        ...


class MemoryRegister:
    """The register of one process: share one object among the threads that play ranks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verdicts: dict[str, Verdict] = {}
        self._names: dict[str, str] = {}

    def decide(self, key: str, proposal: Verdict, *, deadline_s: float) -> Verdict:
        """See `DecisionRegister`. RegisterError while a test holds the register `stalled`."""
        with self._held(key, deadline_s):
            return self._verdicts.setdefault(key, proposal)

    def forget(self, key: str, *, deadline_s: float) -> None:
        """See `DecisionRegister`."""
        with self._held(key, deadline_s):
            self._verdicts.pop(key, None)

    def publish(self, name: str, value: str, *, deadline_s: float) -> None:
        """See `DecisionRegister`."""
        with self._held(name, deadline_s):
            self._names[name] = value

    def look(self, name: str, *, deadline_s: float) -> str:
        """See `DecisionRegister`."""
        with self._held(name, deadline_s):
            return self._names.get(name, "")

    def claim(self, name: str, *, deadline_s: float) -> bool:
        """See `DecisionRegister`."""
        with self._held(name, deadline_s):
            new = name not in self._names
            self._names[name] = "claimed"
            return new

    @contextmanager
    def _held(self, key: str, deadline_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=deadline_s):
            raise RegisterError(f"decision register: no answer for {key!r} in {deadline_s} s")
        try:
            yield
        finally:
            self._lock.release()

    @property
    def stalled(self) -> threading.Lock:
        """Held (`with register.stalled:`), it is a store that answers nobody."""
        return self._lock
