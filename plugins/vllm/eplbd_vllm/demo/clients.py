"""Clients that keep a server busy with the words of a topic, and prompts whose answer is known.

Owns the prompts, the topics and the threads. It must not know who balances the server, or whether.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException

from eplbd_vllm.demo.engines import EngineError, Server

WORDS = range(8, 504)
"""Of the tiny models' vocabulary; below are special ones."""

LENGTH = 24
"""Words of a prompt."""


def check_prompts(count: int = 4) -> list[list[int]]:
    """Prompts to compare answers of, words from everywhere."""
    return [
        [WORDS[(seed * 31 + i * 17) % len(WORDS)] for i in range(LENGTH)] for seed in range(count)
    ]


def answers(server: Server) -> list[list[int]]:
    """Greedy tokens for the check's prompts, asked one after the other."""
    return [server.complete(prompt) for prompt in check_prompts()]


def topic(number: int) -> range:
    """Two words: the fewer words, the fewer experts are busy."""
    return WORDS[22 * number % 480 :][:2]


class Clients:
    """Threads that ask one completion after the other, in the words of the current topic.

    turns: completions of each client before it goes on to the next topic by itself; 0 for never.
    """

    def __init__(self, server: Server, *, count: int = 6, turns: int = 0) -> None:
        self.topic = 0
        self.leaving = False
        """Set before the server is stopped: from then on clients that get no answer just end."""
        self.failures: list[str] = []
        self._server, self._turns = server, turns
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), name=f"client {number}", daemon=True)
            for number in range(count)
        ]

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Ask until the block ends. Raises EngineError where a client got no answer."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()
        if self.failures:
            raise EngineError("; ".join(self.failures))

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._over.is_set():
            words: Sequence[int] = topic(self.topic + (turn // self._turns if self._turns else 0))
            turn += 1
            try:
                self._server.complete([words[number % len(words)]] * LENGTH, words)
            except (OSError, HTTPException, EngineError) as error:
                if not self.leaving:
                    self.failures.append(f"client {number}: {error!r}")
                return
