"""A network that loses, repeats, delays and reorders, in both directions, while epochs go on."""

from __future__ import annotations

import pytest

from tests.chaos.lab import RECOVERY_S, TEST_S, Lab
from tests.chaos.proxy import DROP, Passing
from tests.chaos.rules import BadNetwork
from tests.chaos.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]

BUDGET = 120
"""Messages harmed in each run: of about a hundred a second, so it lasts for some epochs."""


@pytest.mark.parametrize("seed", range(3))
def test_messages_are_lost_repeated_and_late(lab: Lab, seed: int) -> None:
    with lab.scenario(f"bad network, seed {seed}"):
        network, mark = BadNetwork(seed, BUDGET), lab.daemon.mark()
        with lab.group.proxy.obeying(network):
            until(
                lambda: network.harmed.total() >= BUDGET,
                RECOVERY_S,
                lambda: f"{network.harmed}\n{lab.story()}",
            )
        assert len(network.harmed) == 4
        assert min(network.by_way.values()) > BUDGET // 8
        for ended in lab.daemon.since(mark, "epoch ended"):
            assert ended["outcome"] == "settled" or ended["reason"]
        assert not any(lab.daemon.since(mark, "placement frozen"))


def test_one_rank_is_cut_off(lab: Lab) -> None:
    """Nothing of rank 1 arrives and nothing arrives at it: it is lost, and comes back."""

    def cut(passing: Passing) -> tuple[float, ...] | None:
        return DROP if passing.rank == 1 else None

    with lab.scenario("one rank is cut off"):
        mark = lab.daemon.mark()
        with lab.group.proxy.obeying(cut):
            lost = lab.daemon.line("rank lost", mark=mark)
            assert (lost["rank"], "silent" in lost["reason"]) == (1, True)
            lab.group.until(lambda now: not now[1].connected, "rank 1 notices")
            reports = lab.group.until(
                lambda now: all(r.standing == "idle" for r in now), "no epoch is left open"
            )
            assert len({r.epoch for r in reports}) == 1
            assert all(r.connected for r in reports if r.rank != 1)
