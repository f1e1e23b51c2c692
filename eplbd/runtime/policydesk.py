"""Where the core's questions go to the policy child, and where a reload puts another in its place.

Owns which host is asked. Each lives in a task of its own, because what it enters there it must also
leave there; a new one is ready before the old one goes. Must not know policies nor processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import anyio
from anyio.abc import TaskGroup, TaskStatus
from anyio.streams.memory import MemoryObjectSendStream
from structlog.typing import FilteringBoundLogger

from eplbd.config import Loaded
from eplbd.core.events import AskPolicy, PolicyAnswered, PolicyFailed
from eplbd.errors import LocalProtocolError
from eplbd.runtime.policyhost import PolicyHost, Proposal

Answered: TypeAlias = Callable[[PolicyAnswered | PolicyFailed], None]
Questions: TypeAlias = MemoryObjectSendStream[AskPolicy]

QUESTIONS = 16
"""The core has one under way, and a reload leaves at most one more behind."""


class PolicyDesk:
    """Takes questions at once and calls `answered` later, once for each."""

    def __init__(self, tasks: TaskGroup, answered: Answered, logger: FilteringBoundLogger) -> None:
        self._tasks = tasks
        self._answered = answered
        self._logger = logger
        self._questions: Questions | None = None

    async def open(self, loaded: Loaded) -> None:
        """Ask this configuration's policy from now on; the one before answers what it was asked.

        Raises:
            ConfigError: There is no such policy, or its options are wrong; the old one stays.
            PolicyError: It cannot start; the old one stays.
        """
        questions: Questions = await self._tasks.start(self._serve, loaded)
        self.close()
        self._questions = questions

    def close(self) -> None:
        """Let the host go once it has answered."""
        if self._questions is not None:
            self._questions.close()
            self._questions = None

    def ask(self, question: AskPolicy) -> None:
        """Pass a question on; never waits."""
        if self._questions is None:
            raise LocalProtocolError("the policy desk is closed")
        self._questions.send_nowait(question)

    async def _serve(self, loaded: Loaded, *, task_status: TaskStatus[Questions]) -> None:
        config = loaded.config
        host = PolicyHost(config.policy, config.plugins, where=loaded.where, log=self._logger)
        async with host:
            send, receive = anyio.create_memory_object_stream[AskPolicy](QUESTIONS)
            async with send, receive:
                task_status.started(send)
                async for question in receive:
                    self._answered(await _put(host, question))


async def _put(host: PolicyHost, question: AskPolicy) -> PolicyAnswered | PolicyFailed:
    answer = await host.propose(question.heat, question.topology, question.current, question.budget)
    if isinstance(answer, Proposal):
        return PolicyAnswered(question.request, answer.slots, answer.duration_s, answer.shares)
    return PolicyFailed(question.request, answer.outcome, answer.detail, answer.elapsed_s)
