"""The policy desk with real children: who thinks when, and who keeps a seat over a reload."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from eplbd.config import Policy, load
from eplbd.core.events import AskPolicy, Note, PolicyAnswered, PolicyFailed
from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, LocalProtocolError
from eplbd.runtime.policydesk import ACTIVE, PolicyDesk, places
from eplbd.runtime.policyhost import SHADOW_NICENESS
from tests.runtime.conftest import PATIENCE_S
from tests.runtime.process import GUESTS, write_config

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HEAT = Heat(np.ones((4, 1, 4), dtype=np.int32), "all")
TOPOLOGY = Topology.single_node(3, 2)
CURRENT = Placement.linear(1, 4, 3, 2)


@dataclass
class Desk:
    """A desk, what it answered and told, and who sits at it."""

    desk: PolicyDesk
    folder: Path
    answers: dict[int, PolicyAnswered | PolicyFailed]
    notes: list[Note]

    def ask(self, request: int, name: str, *, shadow: bool = True, deadline_s: float = 8.0) -> None:
        budget = Budget(None, None, deadline_s, 1)
        self.desk.ask(AskPolicy(request, "g", name, HEAT, TOPOLOGY, CURRENT, budget, shadow))

    async def answered(self, *requests: int) -> list[PolicyAnswered | PolicyFailed]:
        with anyio.fail_after(PATIENCE_S):
            while not set(requests) <= set(self.answers):  # noqa: ASYNC110 - the desk calls back
                await anyio.sleep(0.005)
        return [self.answers[request] for request in requests]

    async def open(self, **keys: object) -> None:
        config = write_config(self.folder, plugins__modules=[str(GUESTS / "slow.py")], **keys)
        await self.desk.open(load(config))

    def diary(self) -> list[tuple[str, str]]:
        """Who began and ended, in order."""
        lines = [line.split() for line in (self.folder / "diary").read_text().splitlines()]
        return [(who, what) for who, what, _ in sorted(lines, key=lambda line: float(line[2]))]

    def told(self, event: str, times: int) -> list[Mapping[str, Any]]:
        """What the notes of an event say; there are so many."""
        fields = [note.fields for note in self.notes if note.event == event]
        assert len(fields) == times
        return fields

    def options(self, who: str, seconds: float) -> dict[str, object]:
        return {"who": who, "diary": str(self.folder / "diary"), "seconds": seconds}


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    answers: dict[int, PolicyAnswered | PolicyFailed] = {}

    def take(answer: PolicyAnswered | PolicyFailed) -> None:
        assert answer.request not in answers, "once for each"
        answers[answer.request] = answer

    notes: list[Note] = []
    async with anyio.create_task_group() as tasks:
        yield Desk(PolicyDesk(tasks, take, notes.append), folder, answers, notes)
        tasks.cancel_scope.cancel()


def slow(made: Desk, name: str, who: str, seconds: float, shadow: bool = True) -> dict[str, object]:
    """Keys that give a policy its options, as `write_config` takes them."""
    section = f"policy.shadow_options.{name}" if shadow else "policy.options"
    return {f"{section}__{key}": value for key, value in made.options(who, seconds).items()}


def settings(made: Desk, active_s: float, shadow_s: float) -> dict[str, object]:
    return {
        "policy__name": "slow",
        "policy__shadow": ["slow", "slower"],
        **slow(made, "slow", "active", active_s, shadow=False),
        **slow(made, "slow", "first", shadow_s),
        **slow(made, "slower", "second", shadow_s),
    }


async def test_shadows_think_one_by_one_and_not_before_the_active_policy(tmp_path: Path) -> None:
    async with desk(tmp_path) as made:
        await made.open(**settings(made, active_s=0.4, shadow_s=0.2))
        made.ask(2, "slow")
        made.ask(3, "slower")
        made.ask(1, "slow", shadow=False)
        await made.answered(1, 2, 3)
        assert next(who for who, what in made.diary() if what == "begins") == "active"
        shadows = [entry for entry in made.diary() if entry[0] != "active"]
        assert [what for _, what in shadows] == ["begins", "ends"] * 2, "never two at once"


async def test_a_shadow_does_not_delay_the_active_policy(tmp_path: Path) -> None:
    async with desk(tmp_path) as made:
        await made.open(**settings(made, active_s=0.0, shadow_s=3.0))
        made.ask(2, "slow")
        made.ask(3, "slower")
        with anyio.fail_after(PATIENCE_S):
            while not (tmp_path / "diary").exists():  # noqa: ASYNC110 - another process writes it
                await anyio.sleep(0.005)
        for request in range(10, 13):
            made.ask(request, "slow", shadow=False)
            await made.answered(request)
        assert 2 not in made.answers
        assert ("first", "ends") not in made.diary()


async def test_the_deadline_of_a_shadow_counts_from_its_turn(tmp_path: Path) -> None:
    async with desk(tmp_path) as made:
        await made.open(**settings(made, active_s=0.0, shadow_s=0.4))
        made.ask(2, "slow", deadline_s=1.2)
        made.ask(3, "slower", deadline_s=0.2)
        first, second = await made.answered(2, 3)
        assert isinstance(first, PolicyAnswered)
        assert isinstance(second, PolicyFailed)
        assert second.outcome == "timeout"


async def test_shadows_run_at_low_priority(tmp_path: Path) -> None:
    async with desk(tmp_path) as made:
        await made.open(**settings(made, active_s=0.0, shadow_s=0.0))
        ready = made.told("policy ready", 3)
        assert [line.get("shadow") for line in ready] == [None, "slow", "slower"]
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        theirs = [os.getpriority(os.PRIO_PROCESS, line["pid"]) for line in ready]
        assert theirs == [ours, *[min(19, ours + SHADOW_NICENESS)] * 2]


async def test_who_is_wanted_again_unchanged_keeps_its_process(tmp_path: Path) -> None:
    async with desk(tmp_path) as made:
        keys = settings(made, active_s=0.0, shadow_s=0.0)
        await made.open(**keys)
        made.told("policy ready", 3)
        await made.open(**{**keys, "policy__shadow": ["slower", "slow", "hold"]})
        assert made.told("policy ready", 4)[-1]["shadow"] == "hold", "nothing else"
        await made.open(**{**keys, **slow(made, "slower", "third", 0.0)})
        assert made.told("policy ready", 5)[-1]["shadow"] == "slower"
        made.ask(1, "slower")
        assert isinstance((await made.answered(1))[0], PolicyAnswered)
        assert made.diary()[-1] == ("third", "ends")
        with pytest.raises(LocalProtocolError, match="'hold'"):
            made.ask(2, "hold")


async def test_a_shadow_that_cannot_start_costs_itself_alone(tmp_path: Path) -> None:
    async with desk(tmp_path) as made:
        await made.open(policy__shadow=["broken", "hold"])
        (line,) = made.told("shadow cannot start", 1)
        assert "out of order" in line["reason"]
        made.ask(1, "broken")
        made.ask(2, "hold")
        broken, hold = await made.answered(1, 2)
        assert isinstance(broken, PolicyFailed)
        assert broken.outcome == "crashed"
        assert isinstance(hold, PolicyAnswered)


async def test_an_unknown_shadow_is_refused_and_those_before_stay(tmp_path: Path) -> None:
    async with desk(tmp_path) as made:
        await made.open(policy__shadow=["hold"])
        with pytest.raises(ConfigError, match=r"toml:\d+: unknown policy `hodl`; did you mean"):
            await made.open(policy__shadow=["slower", "hodl"], **slow(made, "slower", "x", 0.0))
        with pytest.raises(ConfigError, match=r"policy\.shadow_options\.slower\.haste: `slower`"):
            await made.open(
                **{"policy__shadow": ["slower"], "policy.shadow_options.slower__haste": 3}
            )
        made.ask(1, "hold")
        assert isinstance((await made.answered(1))[0], PolicyAnswered)


def test_each_seat_has_the_limits_and_options_of_its_own(tmp_path: Path) -> None:
    file = write_config(
        tmp_path,
        policy__shadow=["a", "b"],
        policy__deadline_s=3.0,
        **{"policy.options__x": 1, "policy.shadow_options.b__y": 2},
    )
    found = places(load(file).config)
    assert list(found) == [ACTIVE, "a", "b"]
    assert [place.shadow for place in found.values()] == [False, True, True]
    assert found["b"].policy == Policy(name="b", deadline_s=3.0, options={"y": 2})
    assert found["a"].policy.options == {}
