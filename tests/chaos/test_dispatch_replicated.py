"""Two ranks that each recompute all routing: where maps that differ drop or double a token.

The scenarios that end a life of the group are here, and the worst moments of the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eplbd.core import messages as m
from eplbd.core.messages import Gate, Verdict
from tests.chaos.conftest import opened
from tests.chaos.control import Fault
from tests.chaos.lab import RECOVERY_S, TEST_S, Lab
from tests.chaos.rules import BadNetwork, Moment, says
from tests.chaos.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]

BUDGET = 60


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """For this module alone: two groups at a time would be too much for two cores."""
    yield from opened(Lab(tmp_path_factory.mktemp("replicated"), ranks=2, dispatch="replicated"))


MOMENTS = {
    "one was told to arm": (says(m.Arm), 2, False),
    "all are armed": (says(m.Decide, gate=Gate.FLIP, verdict=Verdict.COMMIT), 1, False),
    "one is confirmed": (says(m.Confirm), 2, True),
}
"""Whose nth is the last message of the daemon, and whether the epoch is then in force."""


@pytest.mark.parametrize("name", MOMENTS)
def test_killed(replicated: Lab, name: str) -> None:
    lab = replicated
    matches, nth, commits = MOMENTS[name]
    with lab.scenario(f"replicated, killed: {name}"):
        death = Moment(matches, lab.daemon.kill, nth)
        with lab.at(death):
            alone = lab.group.until(
                lambda now: all(r.standing == "idle" and not r.connected for r in now),
                "the ranks have ended the epoch",
            )
        epoch = getattr(death.message, "epoch", 0)
        assert {r.epoch for r in alone} == {epoch if commits else epoch - 1}


def test_messages_are_lost_repeated_and_late(replicated: Lab) -> None:
    lab = replicated
    with lab.scenario("replicated, bad network"):
        network = BadNetwork(7, BUDGET)
        with lab.group.proxy.obeying(network):
            until(
                lambda: network.harmed.total() >= BUDGET,
                RECOVERY_S,
                lambda: f"{network.harmed}\n{lab.story()}",
            )


def test_an_agent_dies_while_it_is_armed(replicated: Lab) -> None:
    """Its last act is to have the register decide, so its forwards do not wait for nobody.

    Balancing is over for this life of the group, serving is not; the next life is balanced again.
    """
    lab = replicated
    with lab.scenario("an agent dies armed"):
        mark = lab.daemon.mark()
        lab.group.inject(1, Fault.KILL_AGENT)
        lab.group.struck(1, Fault.KILL_AGENT)
        dead = lab.group.until(lambda now: not now[1].agent_alive, "the agent's thread ends")
        later = dead[1].forward + 40
        lab.group.until(lambda now: now[1].forward > later, "forwards go on")
        lost = lab.daemon.line("rank lost", mark=mark)
        assert lost["rank"] == 1
        lab.group.until(lambda now: now[0].standing == "idle", "rank 0 is rid of the epoch")
        reports = lab.group.audit()
        assert len({r.map_digest for r in reports}) == 1
        assert [r.flips for r in reports] == [reports[0].flips] * len(reports)
        assert not any(r.wrong for r in reports)
        lab.nobody_waited("an agent died armed", reports)
        log = (lab.group.folder / "rank1.log").read_text()
        assert "the agent ended, balancing is off" in log
        lab.group.kill()
        lab.start_group()
