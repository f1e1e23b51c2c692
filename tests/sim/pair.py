"""Two groups under one daemon: two worlds, of which the second one's `Node` is the first one's.

The second group is the first one's twin under another name: equal layout, layers and experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from eplbd.core import messages as m
from eplbd.core.events import (
    AskPolicy,
    CycleEnded,
    Effect,
    EpochEnded,
    Event,
    Note,
    Persist,
    Received,
    Send,
)
from tests.sim.world import QUICK, Shape, World

if TYPE_CHECKING:
    from eplbd.core.balancer import Balancer
    from eplbd.core.settings import Settings

FIRST, SECOND = "sim", "twin"

TICK_TURNS = 8
"""Time goes on once in so many turns, for both: or the ranks of one would seem to be silent."""


class _Half(World):
    """One of the two. Effects go to `share`, which knows whose they are."""

    name = FIRST
    share: Callable[[Effect], None] | None = None

    def actions(self) -> list[Callable[[], None]]:
        """All but the passing of time, which is both worlds'."""
        _, *others = super().actions()
        return others or [lambda: None]

    def peer(self, rank: int) -> bytes:
        return f"{rank}.{self.lives}.{self.name}".encode()

    def feed(self, event: Event) -> None:
        if self.node is None:
            return
        match event:
            case Received(message=m.Hello() as hello):
                event = replace(event, message=replace(hello, group=self.name))
            case _:
                pass
        for effect in self.node.step(event):
            (self.share or self.perform)(effect)
        self.node.check()


class _Second(_Half):
    name = SECOND


class Pair:
    """Both worlds, stepped in turn. `look` is called after every step."""

    def __init__(
        self,
        settings: Settings = QUICK,
        look: Callable[[], None] = lambda: None,
        seed: int = 0,
        second: Shape | None = None,
    ) -> None:
        self.look, self.turn = look, 0
        self.worlds = {
            FIRST: _Half(settings=settings, seed=seed),
            SECOND: _Second(second or Shape(), settings=settings, seed=seed + 1),
        }
        self.worlds[SECOND].node = self.worlds[FIRST].node
        for world in self.worlds.values():
            world.share = self.perform

    @property
    def balancers(self) -> list[Balancer]:
        node = self.worlds[FIRST].node
        assert node is not None
        return [balancer for _, balancer in sorted(node.balancers.items())]

    def perform(self, effect: Effect) -> None:
        """Hand an effect to the world that it is for."""
        match effect:
            case Send(bytes() as peer):
                name = peer.rpartition(b".")[2].decode()
            case AskPolicy(group=name) | Persist(group=name) | EpochEnded(group=name):
                pass
            case CycleEnded(group=name):
                pass
            case Note():
                name = str(effect.fields.get("group", FIRST))
            case _:
                name = FIRST
        self.worlds[name].perform(effect)

    def tick(self) -> None:
        """Time goes on everywhere, by as much."""
        for world in self.worlds.values():
            world.tick()

    def run(self, steps: int) -> None:
        """Do so many random things in each."""
        for _ in range(steps):
            self.turn += 1
            if not self.turn % TICK_TURNS:
                self.tick()
            for world in self.worlds.values():
                world.run(1)
                self.look()

    def settle(self, epochs: int, limit: int = 200_000) -> None:
        """Run until each group has settled so many epochs."""
        for _ in range(limit):
            if all(world.settled >= epochs for world in self.worlds.values()):
                return
            self.run(1)
        raise AssertionError([world.story() for world in self.worlds.values()])
