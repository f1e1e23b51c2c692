"""The parent side of the policy child: ask it, and outlive whatever it does.

Owns deadlines, restarts and the counting of outcomes. Must not know policies, nor judge a placement
beyond its form: the core does. A guest's failure is a value (`Failure`), never an exception; only
the first start raises, because a policy that cannot start is the operator's business.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeAlias

import anyio
import numpy as np
from anyio.abc import TaskGroup
from numpy.typing import NDArray

from eplbd import config
from eplbd.core.events import Note
from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, LocalProtocolError, PolicyError, RemoteProtocolError
from eplbd.runtime.policychild import ChildEndedError, PolicyChild
from eplbd.wire.limits import MAX_HEADER_BYTES, MAX_MESSAGE_BYTES
from eplbd.wire.policy import Answer, Ask, Fault, FromChild, List, Listing, Open, Ready, Refused

Outcome: TypeAlias = Literal["raised", "timeout", "crashed", "invalid", "memory"]

START_S = 180.0
"""Patience with a start: imports, the warm-up, and once after an installation compilation, which
takes numba a minute on a slow core."""
BACKOFF_S = 0.1
"""Rest before a restart after one death; doubles with each further death in a row."""
BACKOFF_MAX_S = 5.0
SHADOW_NICENESS = 10
"""A shadow gets a tenth of a core that the active policy wants as well."""
LINES_PER_QUESTION = 200
"""Lines of standard error that are logged between two questions; further ones are counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A policy's answer: `slots` has the current placement's shape and an integer dtype.

    Nothing else was checked; `core.placement.validate` is the judge, also of `shares`. duration_s:
    the policy's own time; elapsed_s: with both ways through the pipes.
    """

    slots: NDArray[np.generic]
    duration_s: float
    elapsed_s: float
    shares: NDArray[np.generic] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """No usable answer. detail: for the operator, with the traceback where there is one."""

    outcome: Outcome
    detail: str
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class PolicyHostStatistics:
    """What happened since the host was entered."""

    policy: str
    distribution: str
    version: str
    pid: int | None
    starts: int
    proposals: int
    failures: Mapping[Outcome, int]
    lines_logged: int
    lines_dropped: int


class _FailedError(Exception):
    """A guest's failure on its way to becoming a `Failure`."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome: Outcome = outcome
        self.detail = detail


class PolicyHost:
    """A policy in a process of its own. Enter it, then ask; one question at a time.

    policy, plugins: `[policy]` and `[plugins]`; the deadline comes with each question's budget.
    where: tells where a setting came from (`config.Loaded.where`), for error messages. say: hears
    of starts, ends, and the child's standard error line by line. start_s: patience with a start.
    shadow: it is asked beside the active policy, gives way to it, and has settings of its own.

    Entering raises ConfigError (unknown policy, bad option) or PolicyError (it cannot start).
    """

    def __init__(
        self,
        policy: config.Policy,
        plugins: config.Plugins,
        *,
        where: Callable[[str], str] | None = None,
        say: Callable[[Note], None] | None = None,
        start_s: float = START_S,
        shadow: bool = False,
    ) -> None:
        self._policy = policy
        self._plugins = plugins
        self._where = where
        self._say = say
        self._shadow = shadow
        self._start_s = start_s
        self._tasks: TaskGroup | None = None
        self._child: PolicyChild | None = None
        self._ready = Ready(policy.name, "-", "-", 0.0)
        self._asking = False
        self._asked = 0
        self._starts = 0
        self._deaths = 0  # in a row
        self._not_before = 0.0
        self._proposals = 0
        self._failures: Counter[Outcome] = Counter()
        self._lines_left = LINES_PER_QUESTION
        self._lines_logged = 0
        self._lines_dropped = 0

    async def __aenter__(self) -> Self:
        """Start the child and shake hands."""
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        try:
            await self._start()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill the child."""
        if self._child is not None:
            await self._child.bury(grace=False)
            self._child = None
        await self._leave()

    async def _leave(self) -> None:
        # The body's exception is the body's: the task group must not wrap it into a group.
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)

    async def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Proposal | Failure:
        """Ask for a placement. Takes the budget's deadline, and a start where the child had ended.

        Raises:
            LocalProtocolError: a question is under way already, or this one cannot be sent.
        """
        if self._asking:
            raise LocalProtocolError("the policy is being asked already; one question at a time")
        self._asking, self._lines_left = True, LINES_PER_QUESTION
        started = anyio.current_time()
        try:
            result = await self._ask(heat, topology, current, budget)
        except _FailedError as failed:
            elapsed_s = anyio.current_time() - started
            self._failures[failed.outcome] += 1
            return Failure(failed.outcome, failed.detail, elapsed_s)
        finally:
            self._asking = False
        self._proposals += 1
        elapsed_s = anyio.current_time() - started
        return Proposal(result.slots, result.duration_s, elapsed_s, result.shares)

    def statistics(self) -> PolicyHostStatistics:
        """Counts since the host was entered."""
        child = self._child
        return PolicyHostStatistics(
            policy=self._ready.policy,
            distribution=self._ready.distribution,
            version=self._ready.version,
            pid=child.process.pid if child is not None and child.alive else None,
            starts=self._starts,
            proposals=self._proposals,
            failures=dict(self._failures),
            lines_logged=self._lines_logged,
            lines_dropped=self._lines_dropped,
        )

    async def _ask(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Answer:
        child = await self._running()
        self._asked += 1
        ask = Ask(
            request=self._asked,
            phase=heat.phase,
            experts=current.experts,
            node_of=topology.node_of,
            speed=topology.speed,
            max_moves=budget.moves,
            max_bytes=budget.bytes,
            deadline_s=budget.deadline_s,
            expert_bytes=budget.expert_bytes,
            heat=heat.steps,
            current=current.slots,
            weighted=budget.weighted,
            shares=current.shares,
        )
        # An honest answer is int32 or int64 of this shape, and as many floats.
        max_bytes = MAX_HEADER_BYTES + 16 * current.slots.size
        late = f"no answer within {budget.deadline_s:g} s"
        answer = await self._exchange(child, ask, max_bytes, budget.deadline_s, late)
        self._deaths = 0
        match answer:
            case Answer(request=self._asked):
                if answer.slots.shape != current.slots.shape or answer.slots.dtype.kind not in "iu":
                    raise _FailedError(
                        "invalid",
                        f"placement: {answer.slots.dtype} of shape {answer.slots.shape}, expected "
                        f"an integer dtype and shape {current.slots.shape}",
                    )
                return answer
            case Fault(request=self._asked, outcome=("raised" | "invalid" | "memory") as outcome):
                if outcome == "memory":
                    # What leaked into its modules would be there at the next question, too.
                    await self._bury("ran out of memory")
                raise _FailedError(outcome, answer.reason)
            case _:
                await self._bury("answered something else")
                raise _FailedError("invalid", f"answered {type(answer).__name__} out of turn")

    async def _exchange(
        self,
        child: PolicyChild,
        message: Open | Ask | List,
        max_bytes: int,
        deadline_s: float,
        late: str,
    ) -> FromChild:
        """One question and its answer. Whatever goes wrong, the child is buried: it may be midway.

        Raises _FailedError.
        """
        answer: FromChild | None = None
        outcome: Outcome = "timeout"
        detail = late
        try:
            with anyio.move_on_after(deadline_s):
                answer = await child.exchange(message, max_bytes)
        except ChildEndedError:
            outcome, detail = "crashed", "the policy's process ended"
        except RemoteProtocolError as error:
            outcome, detail = "invalid", f"the policy's process wrote no message: {error}"
        finally:
            if answer is None:
                detail = f"{detail}: {await self._bury(detail, grace=outcome == 'crashed')}"
        if answer is None:
            raise _FailedError(outcome, detail)
        return answer

    async def _running(self) -> PolicyChild:
        """The child, started again where the last one has ended. Raises _FailedError."""
        if self._child is not None and not self._child.alive:
            await self._bury("ended between two questions")
        if self._child is None:
            await anyio.sleep(max(0.0, self._not_before - anyio.current_time()))
            try:
                return await self._start()
            except (ConfigError, PolicyError) as error:
                raise _FailedError("crashed", str(error)) from error
        return self._child

    async def _start(self) -> PolicyChild:
        """Spawn and shake hands. Raises ConfigError or PolicyError."""
        name = self._policy.name
        child = await self._spawn()
        plugins = self._plugins
        keys = ("policy.shadow", f"policy.shadow_options.{name}") if self._shadow else ()
        wanted = Open(name, self._policy.options, plugins.enabled, plugins.modules, *keys)
        try:
            late = f"no handshake within {self._start_s:g} s"
            answer = await self._exchange(child, wanted, MAX_MESSAGE_BYTES, self._start_s, late)
        except _FailedError as failed:
            raise PolicyError(f"policy `{name}` cannot start: {failed.detail}") from failed
        if isinstance(answer, Ready):
            self._ready = answer
            self._note(
                "info",
                "policy ready",
                policy=answer.policy,
                alias=name if name != answer.policy else None,
                distribution=answer.distribution,
                version=answer.version,
                pid=child.process.pid,
                start_s=round(answer.start_s, 3),
            )
            return child
        await self._bury("refused to start", grace=True)
        if not isinstance(answer, Refused):
            raise PolicyError(f"policy `{name}` cannot start: answered {type(answer).__name__}")
        if not answer.path:
            raise PolicyError(answer.reason)
        place = f"{self._where(answer.path)}: " if self._where is not None else ""
        raise ConfigError(f"{place}{answer.reason}")

    async def _spawn(self) -> PolicyChild:
        if self._tasks is None:
            raise LocalProtocolError("enter the policy host before asking it")
        try:
            child = await PolicyChild.spawn(
                self._policy.memory_bytes,
                self._take_line,
                niceness=SHADOW_NICENESS if self._shadow else 0,
            )
        except OSError as error:
            raise PolicyError(f"no process for the policy: {error}") from error
        self._child = child
        self._starts += 1
        self._tasks.start_soon(child.attend)
        return child

    async def _bury(self, reason: str, *, grace: bool = False) -> str:
        """Bury the child and say when the next may start."""
        child, self._child = self._child, None
        if child is None:
            return ""
        ending = await child.bury(grace=grace)
        self._deaths += 1
        rest_s = min(BACKOFF_S * 2 ** (self._deaths - 1), BACKOFF_MAX_S)
        self._not_before = anyio.current_time() + rest_s
        self._note("warning", "policy process ended", reason=reason, detail=ending)
        return ending

    def _take_line(self, line: str) -> bool:
        if self._lines_left == 0:
            self._lines_dropped += 1
            return False
        self._lines_left -= 1
        self._lines_logged += 1
        self._note("info", "policy wrote", policy=self._ready.policy, line=line)
        return True

    def _note(self, level: str, event: str, **fields: object) -> None:
        if self._say is not None:
            whose = {"shadow": self._policy.name} if self._shadow else {}
            self._say(Note(level, event, {**whose, **fields}))


async def list_policies(
    plugins: config.Plugins, memory_bytes: int, start_s: float = START_S
) -> Listing:
    """What every enabled plugin offers. It takes importing them all, in a child of its own.

    Raises:
        ConfigError: `[plugins]` names what is not there.
        PolicyError: a plugin took the child down; the text ends with the one that was being loaded.
    """
    wanted = List(plugins.enabled, plugins.modules)
    answer: FromChild | None = None
    async with anyio.create_task_group() as tasks:
        child = await PolicyChild.spawn(memory_bytes, lambda _: True)
        tasks.start_soon(child.attend)
        try:
            with anyio.move_on_after(start_s), suppress(ChildEndedError, RemoteProtocolError):
                answer = await child.exchange(wanted, MAX_MESSAGE_BYTES)
        finally:
            ending = await child.bury(grace=answer is None)
    if isinstance(answer, Listing):
        return answer
    if isinstance(answer, Refused):
        raise ConfigError(answer.reason)
    raise PolicyError(f"a plugin ended the process that lists policies: {ending}")
