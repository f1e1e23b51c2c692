"""Whose heat is looked at when several groups wait: one after another, and each in its turn."""

from __future__ import annotations

from dataclasses import replace

from tests.sim.pair import Pair
from tests.sim.world import QUICK

EAGER = replace(QUICK, balance=replace(QUICK.balance, interval_s=0.001, min_gain=1.0))
"""Each group wants a look with every tick; nothing is worth a move."""

LOOKS = 40


def test_two_groups_are_not_looked_at_together_and_neither_waits_for_ever() -> None:
    pair = Pair(EAGER)
    looks: list[tuple[float, str]] = []

    def look() -> None:
        for balancer in pair.balancers:
            at = balancer.cycle.considered_at if balancer.cycle else 0.0
            if at and (at, balancer.group.name) not in looks:
                looks.append((at, balancer.group.name))

    pair.look = look
    for _ in range(100 * LOOKS):
        pair.run(10)
        if len(looks) >= LOOKS:
            break
    times = [at for at, _ in looks]
    assert len(set(times)) == len(times), "one at a time"
    names = [name for _, name in looks]
    assert min(names.count(name) for name in set(names)) > LOOKS // 4
    assert len(set(names)) == len(pair.balancers)
