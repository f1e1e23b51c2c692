"""The picture on a terminal, driven by its own pilot: what is seen, and what keys do."""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

pytest.importorskip("textual", reason="no textual: pip install 'eplbd[top]'")

from textual.pilot import Pilot

from eplbd.config import load
from eplbd.core.events import Note
from eplbd.core.node import Node
from eplbd.core.overview import overview
from eplbd.core.settings import Settings
from eplbd.errors import ConfigError, RemoteProtocolError
from eplbd.runtime.follow import follow
from eplbd.runtime.stream import open_stream
from eplbd.top.app import Follows, Part, Top
from eplbd.top.question import Question, Reply
from eplbd.wire.stream import Told
from tests.runtime.conftest import PATIENCE_S
from tests.top import pictures

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # imports half a second of terminal

SIZES = [(80, 24), (140, 40)]
WORDS = (
    "eplbd 0.1.0 on gpu-17", "load of ranks", "PAR  plan trend", "attached, 1 lost",
    "rank state     lag   seen   heat stage", "40 settled, 1 aborted",
    "epoch outcome  moves   bytes   took", "policy      outcome    PAR    vs moves", "incremental",
    "inflation 1.032 of 1.050", "last commit 42 s ago", "notes, 2 ALARMS", "ALARM rank-missing",
)  # fmt: skip
KEYS = ("q Quit", "p Pause", "r Resume", "f Freeze", "m Promote", "b Roll back", "g Group")


class Life:
    """A stream that has told a life, and then is silent or breaks."""

    def __init__(self, *told: Told, then: Exception | None = None) -> None:
        self._told, self._then = told, then

    async def catch_up(self) -> list[Told]:
        return list(self._told)

    async def next(self) -> list[Told]:
        if self._then is not None:
            raise self._then
        await anyio.sleep_forever()
        return []


def life(**shape: int) -> Life:
    layers, ranks = shape.get("layers", 58), shape.get("ranks", 16)
    names = ["default", "draft"][: shape.get("groups", 1)]
    groups = [pictures.group(name, layers=layers, ranks=ranks) for name in names]
    return Life(*pictures.events(layers), pictures.snapshot(*groups))


class Orders:
    """Takes commands, and refuses those that it is told to."""

    def __init__(self, refused: str = "") -> None:
        self.taken: list[tuple[str, str, Reply]] = []
        self._refused = refused

    async def __call__(self, verb: str, group: str, reply: Reply) -> str:
        self.taken.append((verb, group, reply))
        if self._refused:
            raise ConfigError(self._refused)
        return f"{verb}: done as told"


@asynccontextmanager
async def watching(
    follower: Follows, orders: Orders | None = None, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[Pilot[str]]:
    app = Top(follower, orders or Orders())
    with anyio.fail_after(PATIENCE_S):
        async with app.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: app.history.snapshot is not None)
            await shows(pilot, KEYS[0])  # drawn last; before that a key finds nobody
            yield pilot


async def until(pilot: Pilot[str], happened: Callable[[], bool]) -> None:
    while not happened():
        await pilot.pause(0.01)
    await pilot.pause()


def seen(pilot: Pilot[str]) -> str:
    """What is on the screen, line by line."""
    rows: dict[float, list[tuple[float, str]]] = defaultdict(list)
    picture = pilot.app.export_screenshot()
    for x, y, text in re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)', picture):
        rows[float(y)].append((float(x), html.unescape(text).replace("\xa0", " ")))
    return "\n".join("".join(text for _, text in sorted(row)) for _, row in sorted(rows.items()))


async def shows(pilot: Pilot[str], text: str) -> None:
    """Wait until this is on the screen; looking takes longer than most things take to appear."""
    while text not in seen(pilot):
        await pilot.pause(0.1)


# --- what is seen -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ranks", [4, 16, 320])
async def test_everything_has_its_place(size: tuple[int, int], ranks: int) -> None:
    async with watching(life(ranks=ranks), size=size) as pilot:
        for word in (*WORDS, *KEYS):
            await shows(pilot, word)
        regions = [part.region for part in pilot.app.query(Part)]
        assert len(regions) == 7
        for index, region in enumerate(regions):
            assert pilot.app.screen.region.contains_region(region)
            assert region.height >= 2
            assert not any(region.overlaps(other) for other in regions[index + 1 :])


async def test_the_map_is_coloured_by_load() -> None:
    async with watching(life(layers=4, ranks=8), size=(140, 40)) as pilot:
        hot = "#d32f2f"
        assert seen(pilot).count("2.31") == 2
        assert hot in pilot.app.export_screenshot().lower()


async def test_groups_are_shown_in_turn() -> None:
    async with watching(life(groups=2)) as pilot:
        await shows(pilot, "default (1 of 2)")
        await pilot.press("g")
        await shows(pilot, "draft (2 of 2)")
        await pilot.press("g")
        await shows(pilot, "default (1 of 2)")


async def test_a_daemon_without_a_group_is_no_reason_to_fail() -> None:
    async with watching(Life(pictures.snapshot())) as pilot:
        await shows(pilot, "no worker has said hello")
        await pilot.press("p", "g")
        await shows(pilot, "there is no group to command")


async def test_what_grows_old_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eplbd.top.app.SILENCE_S", -1.0)
    async with watching(life()) as pilot:
        await shows(pilot, "NOT HEARD FOR")


async def test_a_daemon_of_another_version_ends_the_picture_with_the_reason() -> None:
    app = Top(Life(then=RemoteProtocolError("upgrade the older one")), Orders())
    with anyio.fail_after(PATIENCE_S):
        async with app.run_test():
            await app.workers.wait_for_complete()
    assert app.return_value == "upgrade the older one"
    assert app.return_code == 1


# --- what keys do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "verb"), [("p", "pause"), ("r", "resume"), ("f", "freeze"), ("b", "rollback")]
)
async def test_a_key_asks_why_and_then_commands(key: str, verb: str) -> None:
    orders = Orders()
    async with watching(life(), orders) as pilot:
        await pilot.press(key)
        await until(pilot, lambda: isinstance(pilot.app.screen, Question))
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, Question), "a reason is needed"
        assert not orders.taken
        await pilot.press(*"too", "space", *"hot", "enter")
        await shows(pilot, "done as told")
    assert orders.taken == [(verb, "default", Reply("", "too hot"))]


async def test_a_promotion_asks_which_and_why() -> None:
    orders = Orders()
    async with watching(life(), orders) as pilot:
        await pilot.press("m")
        await shows(pilot, "Put another policy in charge")
        await pilot.press("down", "enter", *"better", "enter")
        await shows(pilot, "done as told")
    assert orders.taken == [("promote", "default", Reply("swift", "better"))]


async def test_escape_takes_it_back() -> None:
    orders = Orders()
    async with watching(life(), orders) as pilot:
        await pilot.press("f")
        await until(pilot, lambda: isinstance(pilot.app.screen, Question))
        await pilot.press(*"why", "escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, Question))
    assert not orders.taken


async def test_a_refusal_is_shown_as_it_was_said() -> None:
    async with watching(life(), Orders("rank 2 is [bold]lost[/bold]")) as pilot:
        await pilot.press("b")
        await until(pilot, lambda: isinstance(pilot.app.screen, Question))
        await pilot.press(*"why", "enter")
        await shows(pilot, "rank 2 is [bold]lost[/bold]")


async def test_q_ends_it() -> None:
    async with watching(life()) as pilot:
        await pilot.press("q")
        await until(pilot, lambda: not pilot.app.is_running)


# --- a real stream ------------------------------------------------------------------------------


async def test_what_a_stream_tells_is_drawn_as_it_comes(tmp_path: Path) -> None:
    flags = {"daemon.socket": f"ipc://{tmp_path}/w.sock", "stream.interval_s": "0.05"}
    settings = load(flags=flags).config
    node = Node(Settings())
    with open_stream(settings, lambda: overview(node)) as stream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.run)
            with follow(settings) as follower:
                async with watching(follower) as pilot:
                    await shows(pilot, "no worker has said hello")
                    stream.take(Note("warning", "something happened", {"rank": 3}))
                    await shows(pilot, "something happened rank=3")
            tasks.cancel_scope.cancel()
