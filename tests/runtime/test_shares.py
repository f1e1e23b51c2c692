"""Shares through a real daemon: from a policy's process to the ranks, then to the next daemon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eplbd.core import messages as m
from tests.runtime.conftest import Connect
from tests.runtime.process import daemon, write_config
from tests.runtime.workers import Worker, drive, group, welcomed

pytestmark = pytest.mark.slow

LEANER = """
import eplbd

class Leaner:
    name, eplbd_api = "leaner", 1

    def propose(self, heat, topology, current, budget):
        # Experts 0 and 1 are on both ranks, the hot one on rank 0 alone.
        shares = eplbd.even_shares(current)
        shares[:, 0, :2], shares[:, 1, 1:] = 0.0, 1.0
        return eplbd.Placement(current.slots, current.experts, shares)

@eplbd.hookimpl
def eplbd_register_policies(register):
    register(Leaner)
"""


def config(folder: Path) -> Path:
    guest = folder / "leaner.py"
    guest.write_text(LEANER)
    return write_config(
        folder,
        policy__name="leaner",
        plugins__modules=[str(guest)],
        balance__interval_s=0.1,
        balance__min_steps=16,
        balance__min_gain=0.0,
        balance__pause_s=0.01,
    )


def weighted_group(connect: Connect) -> list[Worker]:
    workers = group(connect)
    for worker in workers:
        worker.weighted = True
    return workers


def heated(workers: list[Worker]) -> None:
    for worker in workers:
        if worker.agent.standing is m.Standing.IDLE:
            worker.say(worker.heat(1))


def test_shares_come_into_force_and_a_new_daemon_learns_them(
    tmp_path: Path, connect: Connect
) -> None:
    file = config(tmp_path)
    with daemon(file) as served:
        workers = weighted_group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")

        def settled() -> bool:
            heated(workers)
            return all(worker.agent.epoch >= 1 for worker in workers)

        drive(workers, settled, "epoch 1 settled")
        line = served.line("epoch ended")
        assert (line["outcome"], line["moves"], line["rounds"]) == ("settled", 0, 0)
    placement = workers[0].agent.placement
    assert placement.shares is not None
    assert np.array_equal(placement.shares[:, 0], [[0.0, 0.0, 1.0]] * 2)
    assert workers[1].agent.placement == placement
    with daemon(file) as served:
        drive(workers, lambda: "group ready" in served.events(), "the next daemon took over")
        assert served.line("group ready")["digest"] == placement.digest
        assert "placement frozen" not in served.events()


def test_an_engine_that_takes_none_suspends_a_policy_that_gives_some(
    tmp_path: Path, connect: Connect
) -> None:
    with daemon(config(tmp_path)) as served:
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")

        def suspended() -> bool:
            heated(workers)
            return "policy suspended, hold takes over" in served.events()

        drive(workers, suspended, "three failures")
        assert "return shares only where budget.weighted is true" in str(served.lines)
    prepares = [said for worker in workers for said in worker.heard if isinstance(said, m.Prepare)]
    assert prepares == []


def test_ranks_that_do_not_agree_on_shares_are_no_group(tmp_path: Path, connect: Connect) -> None:
    with daemon(write_config(tmp_path)) as served:
        workers = group(connect)
        workers[0].weighted = True
        drive(workers, lambda: "worker refused" in served.events(), "one was refused")
        assert "weighted" in served.line("worker refused")["reason"]
