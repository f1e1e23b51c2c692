"""The decision register on a `torch.distributed` store, which lives as long as the EP group.

Owns the mapping of `decide` to `compare_set`, and the deadline. It must not know epochs.

How the store behaves (torch 2.13, TCPStore with and without PrefixStore, HashStore; the tests hold
it to this): `compare_set(key, "", value)` writes where the key is missing *or holds the empty
string*, and returns what the key holds afterwards. The server answers from one thread, so it is
atomic. The timeout of a client bounds waiting for keys, but **not** this call: with the server
stopped (SIGSTOP) it waited until the server ran again. Hence a thread of our own, and a future.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from queue import SimpleQueue
from typing import Self

from torch._C._distributed_c10d import PrefixStore, Store

from eplbd.core.messages import Verdict
from eplbd.worker.register import RegisterError
from eplbd.worker.torch_store import own_client

_CONNECT_TIMEOUT_S = 5.0
"""Bounds a reconnection on the register's own thread; callers have deadlines of their own."""

_Question = tuple[Callable[[Store], str], Future[str]]


class TorchRegister:
    """A register over `store`; enter it to start its thread, leave it to end that thread.

    `store` is cloned, never used: the engine's client stays the engine's (ConfigError or
    RuntimeError where that fails). Keys are written below `prefix`. One thread asks, in the order
    of calls, so callers never get each other's answers, though one may wait for another's.
    """

    def __init__(self, store: Store, *, prefix: str = "eplbd/decisions") -> None:
        self._store = store
        self._prefix = prefix
        self._first: Store | None = self._connect()
        self._questions: SimpleQueue[_Question | None] = SimpleQueue()
        # A daemon: a call that the stopped server never answers must not hold up the engine's exit.
        self._thread = threading.Thread(target=self._answer, name="eplbd-register", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._questions.put(None)

    def decide(self, key: str, proposal: Verdict, *, deadline_s: float) -> Verdict:
        """See `DecisionRegister`. Also RegisterError where the key holds no verdict."""

        def compare_and_set(client: Store) -> str:
            return client.compare_set(key, "", proposal.value).decode(errors="replace")

        held = self._ask(key, compare_and_set, deadline_s)
        try:
            return Verdict(held)
        except ValueError:
            raise RegisterError(
                f"decision register: {key!r} holds {held!r}, not a verdict; "
                f"something else writes below {self._prefix!r} of the store"
            ) from None

    def forget(self, key: str, *, deadline_s: float) -> None:
        """See `DecisionRegister`."""
        self._ask(key, lambda client: str(client.delete_key(key)), deadline_s)

    def publish(self, name: str, value: str, *, deadline_s: float) -> None:
        """See `DecisionRegister`."""

        def write(client: Store) -> str:
            client.set(name, value)
            return value

        self._ask(name, write, deadline_s)

    def look(self, name: str, *, deadline_s: float) -> str:
        """See `DecisionRegister`."""

        def read(client: Store) -> str:
            # `get` waits for a key that is not there, as long as the client's timeout.
            there = client.check([name])
            return client.get(name).decode(errors="replace") if there else ""

        return self._ask(name, read, deadline_s)

    def claim(self, name: str, *, deadline_s: float) -> bool:
        """See `DecisionRegister`."""
        return self._ask(name, lambda client: str(client.add(name, 1)), deadline_s) == "1"

    def _ask(self, key: str, question: Callable[[Store], str], deadline_s: float) -> str:
        answer: Future[str] = Future()
        self._questions.put((question, answer))
        try:
            return answer.result(timeout=deadline_s)
        except FutureTimeoutError:
            # Still in the queue: it will not be asked. Already asked: it may yet take effect.
            answer.cancel()
            raise RegisterError(
                f"decision register: no answer for {key!r} in {deadline_s} s; "
                "is the host of the EP group's store alive?"
            ) from None
        except RuntimeError as error:
            raise RegisterError(f"decision register: {key!r}: {error}") from error

    def _answer(self) -> None:
        client = self._first
        while (asked := self._questions.get()) is not None:
            question, answer = asked
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                if client is None:
                    client = self._connect()
                answer.set_result(question(client))
            except RuntimeError as error:
                # A connection that failed once stays failed; the next question opens another.
                client = None
                answer.set_exception(error)

    def _connect(self) -> Store:
        return PrefixStore(self._prefix, own_client(self._store, _CONNECT_TIMEOUT_S))
