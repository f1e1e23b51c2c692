"""Where the core's questions go to the policies' children, and where a reload changes who is there.

Owns which host is asked and when. Each host lives in a task of its own, because what it enters
there it must also leave there; a new one is ready before the old one goes. Must not know policies
nor processes.

The rule for shadows: they think one at a time, in the order in which they were asked, and none
begins while the active policy is being asked. One that has begun goes on, at low priority. A
deadline counts from when a policy begins, not from when it was asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from anyio.streams.memory import MemoryObjectSendStream

from eplbd.config import Config, Loaded, Plugins, Policy
from eplbd.core.admission import GROUPS_MAX
from eplbd.core.events import AskPolicy, Note, PolicyAnswered, PolicyFailed
from eplbd.errors import ConfigError, LocalProtocolError, PolicyError
from eplbd.runtime.policyhost import PolicyHost, PolicyHostStatistics, Proposal

Answered: TypeAlias = Callable[[PolicyAnswered | PolicyFailed], None]
Questions: TypeAlias = MemoryObjectSendStream[AskPolicy]

ACTIVE = ""
"""The seat of the policy that is in charge; a shadow's is called like the shadow."""

QUESTIONS = 2 * GROUPS_MAX
"""The core asks a shadow once per group at a time, and a reload may leave as many behind."""


@dataclass(frozen=True, slots=True)
class Place:
    """All that decides whether a host may stay over a reload."""

    policy: Policy
    plugins: Plugins
    shadow: bool


@dataclass(frozen=True, slots=True)
class _Seat:
    place: Place
    questions: Questions | None
    """None for a shadow that could not start."""

    def close(self) -> None:
        """Let the host go once it has answered."""
        if self.questions is not None:
            self.questions.close()


def places(config: Config) -> dict[str, Place]:
    """Who is to be asked: the active policy under `ACTIVE`, then each shadow under its name."""
    active = msgspec.structs.replace(config.policy, shadow=(), shadow_options={})
    made = {ACTIVE: Place(active, config.plugins, shadow=False)}
    for name in config.policy.shadow:
        options = config.policy.shadow_options.get(name, {})
        policy = msgspec.structs.replace(active, name=name, options=options)
        made[name] = Place(policy, config.plugins, shadow=True)
    return made


class PolicyDesk:
    """Takes questions at once and calls `answered` later, once for each."""

    def __init__(self, tasks: TaskGroup, answered: Answered, say: Callable[[Note], None]) -> None:
        self._tasks = tasks
        self._answered = answered
        self._say = say
        self._seats: dict[str, _Seat] = {}
        self._turn = anyio.Lock()
        """Of the shadow that thinks."""
        self._urgent = 0
        """Questions to the active policy that have no answer yet."""
        self._quiet = anyio.Event()

    async def open(self, loaded: Loaded) -> None:
        """Ask this configuration's policies from now on; those before answer what they were asked.

        Who is wanted again, unchanged, stays.

        Raises:
            ConfigError: There is no such policy, or its options are wrong; the old ones stay.
            PolicyError: The active policy cannot start; the old ones stay. A shadow that cannot is
                said in the log and fails whatever it is asked.
        """
        opened: dict[str, _Seat] = {}
        try:
            for name, place in places(loaded.config).items():
                old = self._seats.get(name)
                kept = old is not None and old.place == place and old.questions is not None
                opened[name] = old if old and kept else await self._seated(place, loaded)
        except (ConfigError, PolicyError):
            for name, seat in opened.items():
                if self._seats.get(name) is not seat:
                    seat.close()
            raise
        for name, seat in self._seats.items():
            if opened.get(name) is not seat:
                seat.close()
        self._seats = opened

    def ask(self, question: AskPolicy) -> None:
        """Pass a question on; never waits."""
        seat = self._seats.get(question.policy if question.shadow else ACTIVE)
        if seat is None:
            raise LocalProtocolError(f"nobody at the policy desk is called {question.policy!r}")
        if not question.shadow:
            self._urgent += 1
        if seat.questions is None:
            self._tasks.start_soon(self._decline, question)
        else:
            seat.questions.send_nowait(question)

    async def _seated(self, place: Place, loaded: Loaded) -> _Seat:
        questions: Questions | None = None
        reason = ""
        try:
            questions = await self._tasks.start(self._serve, place, loaded)
        except PolicyError as error:
            if not place.shadow:
                raise
            reason = str(error)
        if questions is None:
            about = {"policy": place.policy.name, "reason": reason}
            self._say(Note("error", "shadow cannot start", about))
        return _Seat(place, questions)

    async def _serve(
        self, place: Place, loaded: Loaded, *, task_status: TaskStatus[Questions]
    ) -> None:
        async with _host(place, loaded, self._say) as host:
            send, receive = anyio.create_memory_object_stream[AskPolicy](QUESTIONS)
            async with send, receive:
                task_status.started(send)
                async for question in receive:
                    if place.shadow:
                        await self._put_in_turn(host, question)
                    else:
                        with self._before_shadows():
                            answer = await _put(host, question)
                        self._answered(answer)

    async def _put_in_turn(self, host: PolicyHost, question: AskPolicy) -> None:
        async with self._turn:
            while self._urgent:
                self._quiet = anyio.Event()
                await self._quiet.wait()
            answer = await _put(host, question)
        self._answered(answer)

    @contextlib.contextmanager
    def _before_shadows(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._urgent -= 1
            if not self._urgent:
                self._quiet.set()

    async def _decline(self, question: AskPolicy) -> None:
        detail = "it could not start, as the log said then; a reload tries again"
        self._answered(PolicyFailed(question.request, "crashed", detail))


async def start_once(loaded: Loaded) -> dict[str, PolicyHostStatistics]:
    """Start each policy of a configuration and end it again; who answered, by seat.

    Raises:
        ConfigError: There is no such policy, or its options are wrong.
        PolicyError: It cannot start.
    """
    found: dict[str, PolicyHostStatistics] = {}
    for name, place in places(loaded.config).items():
        async with _host(place, loaded, None) as host:
            found[name] = host.statistics()
    return found


def _host(place: Place, loaded: Loaded, say: Callable[[Note], None] | None) -> PolicyHost:
    policy, plugins, shadow = place.policy, place.plugins, place.shadow
    return PolicyHost(policy, plugins, where=loaded.where, say=say, shadow=shadow)


async def _put(host: PolicyHost, question: AskPolicy) -> PolicyAnswered | PolicyFailed:
    answer = await host.propose(question.heat, question.topology, question.current, question.budget)
    if isinstance(answer, Proposal):
        return PolicyAnswered(question.request, answer.slots, answer.duration_s, answer.shares)
    return PolicyFailed(question.request, answer.outcome, answer.detail, answer.elapsed_s)
