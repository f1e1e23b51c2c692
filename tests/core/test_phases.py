"""Prefill and decode in one engine: each has its window, and one of them drives planning."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from eplbd.core import messages as m
from eplbd.core.events import AskPolicy, CycleEnded, Effect
from eplbd.core.ledger import Ledger
from tests.sim.quick import QUICK
from tests.sim.world import World

HOT = {"prefill": 0, "decode": 4}
"""The expert that takes nearly all tokens, by phase."""


class Mixed(World):
    """Forwards come in pairs: four prefill, twelve decode, and so on."""

    def __post_init__(self) -> None:
        self.asked: list[AskPolicy] = []
        super().__post_init__()

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, AskPolicy):
            self.asked.append(effect)
        super().perform(effect)

    def heat(self) -> NDArray[np.int32]:
        return np.full(self.shape.experts, 12, dtype=np.int32)

    def collect(self, rank: int) -> None:
        box = self.ranks[rank].outbox
        for i, said in enumerate(box):
            if isinstance(said, m.HeatReport):
                box[i] = self.of_phase(rank, said)
        super().collect(rank)

    def of_phase(self, rank: int, report: m.HeatReport) -> m.HeatReport:
        phase = "prefill" if report.first_forward // 2 % 8 < 2 else "decode"
        hot = self.ranks[rank].map.slots[:, rank] == HOT[phase]
        counts = np.where(hot, 100 * report.counts, 1).astype(np.int32)
        routed = counts.sum(axis=(1, 2), dtype=np.int64)
        return replace(report, phase=phase, counts=counts, routed=routed)

    @property
    def books(self) -> Ledger:
        assert self.node is not None
        ledger = self.node.balancers["sim"].ledger
        assert ledger is not None
        return ledger


def served(phase: str) -> Mixed:
    balance = replace(QUICK.balance, phase=phase, opening="none", interval_s=3.0)
    world = Mixed(seed=11, settings=replace(QUICK, balance=balance))
    for _ in range(4000):
        if len([e for e in world.log if isinstance(e, CycleEnded) and e.par_realised]) > 2:
            return world
        world.run(20)
    raise AssertionError(world.story())


def hottest(ask: AskPolicy) -> Counter[int]:
    """How often each expert is the hottest of a step and layer."""
    return Counter(ask.heat.steps.argmax(axis=-1).ravel().tolist())


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_policy_sees_one_phase_alone(phase: str) -> None:
    world = served(phase)
    assert world.asked
    for ask in world.asked:
        assert ask.heat.phase == phase
        assert set(hottest(ask)) == {HOT[phase]}


def test_all_is_both() -> None:
    world = served("all")
    seen = sum(map(hottest, world.asked), Counter[int]())
    assert set(seen) == set(HOT.values())
    assert seen[HOT["decode"]] > seen[HOT["prefill"]] > 0


def test_a_rare_phase_keeps_a_window_of_its_own_size() -> None:
    """Decode steps, three times as many, do not push those of prefill out."""
    world = served("all")
    window = QUICK.balance.window_steps
    sizes: dict[str, int] = {}
    for _ in range(4000):
        sizes = {phase: len(world.books.since(-1, phase)) for phase in ("all", "prefill", "decode")}
        if set(sizes.values()) == {window}:
            return
        world.run(20)
    raise AssertionError(f"{sizes}")
