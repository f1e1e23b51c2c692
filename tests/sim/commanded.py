"""A simulated group whose operator gives commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from eplbd.core import commands as c
from eplbd.core.events import AskPolicy, CycleEnded, Effect, PolicyAnswered
from eplbd.core.group import Phase
from eplbd.core.orders import Orders
from eplbd.core.placement import Placement
from eplbd.core.settings import Settings
from tests.core.test_modes import Noted
from tests.sim.world import QUICK, Shape

WIDE = Shape(ranks=4)
"""Twelve slots a layer for five experts: any rank can be spared."""

TIGHT = Shape(ranks=4, experts=8)
"""Nine slots without a rank: one redundant."""

CALM = replace(QUICK, balance=replace(QUICK.balance, par_trigger=1e6, min_gain=0.99))
"""Nothing is ever worth a plan."""


class Commanded(Noted):
    """A world with an operator; policies answer for whatever group they are shown."""

    def __post_init__(self) -> None:
        self.kept: Mapping[str, Orders] = {}
        self.request = 0
        super().__post_init__()

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, c.RememberOrders):
            self.kept = effect.orders
        super().perform(effect)

    def start_daemon(self, *, stale: bool = False) -> None:
        super().start_daemon(stale=stale)
        self.feed(c.OrdersRestored(self.kept))

    def answer_policy(self) -> None:
        ask = self.proposals.popleft()
        self.feed(PolicyAnswered(ask.request, self.any_for(ask), 0.01))

    def any_for(self, ask: AskPolicy) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        """Any valid placement of the ranks that the question shows."""
        whole = self.shape
        self.shape = replace(whole, ranks=ask.topology.ranks)
        rows = np.stack([self.shuffled() for _ in range(whole.layers)])
        self.shape = whole
        return rows

    def say(self, command: c.Command, why: str = "a test") -> c.Answer | c.Keep:
        """Give a command; its one answer."""
        self.request += 1
        mark = len(self.effects)
        self.feed(c.Commanded(self.request, command, "alice", why))
        (answer,) = [
            effect
            for effect in self.effects[mark:]
            if isinstance(effect, c.Answer | c.Keep) and effect.request == self.request
        ]
        return answer

    def told(self, command: c.Command) -> str:
        answer = self.say(command)
        assert isinstance(answer, c.Answer)
        assert not answer.refused, answer.refused
        return answer.told

    def refused(self, command: c.Command) -> str:
        answer = self.say(command)
        assert isinstance(answer, c.Answer)
        assert answer.refused, f"{command} was obeyed: {answer.told}"
        return answer.refused

    def ready(self) -> None:
        """Until the group may move and there is heat for a plan."""

        def settled() -> bool:
            assert self.node is not None
            led = self.node.balancers.get("sim")
            if led is None or led.group.phase is not Phase.READY or led.ledger is None:
                return False
            return led.ledger.statistics().steps > self.settings.balance.window_steps

        self.until(settled)

    def asks(self, mark: int) -> list[AskPolicy]:
        return [e for e in self.effects[mark:] if isinstance(e, AskPolicy)]

    def ended(self, mark: int) -> list[CycleEnded]:
        return [e for e in self.effects[mark:] if isinstance(e, CycleEnded)]


def led(seed: int = 1, settings: Settings = QUICK, shape: Shape = WIDE) -> Commanded:
    world = Commanded(seed=seed, settings=settings, shape=shape)
    world.ready()
    return world


def hosts(placement: Placement, layer: int, expert: int) -> list[int]:
    return np.flatnonzero(placement.hosts()[layer, :, expert]).tolist()
