"""Two real groups of one model under one daemon: they share heat, and move one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.group import Group
from tests.chaos.lab import QUICK, RECOVERY_S, TEST_S
from tests.chaos.served import Served
from tests.chaos.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]

NAMES = ("model-decode-0", "model-decode-1")
REBALANCES = 2


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ExitStack() as stack:
        served = Served(tmp_path_factory.mktemp("replicas"))
        served.configure(
            **{
                **QUICK,
                "session__silence_s": 5.0,
                "balance__share_heat": ["*-decode-*"],
                "balance__rollout": "one-at-a-time",
            }
        )
        stack.callback(served.close)
        served.start()
        yield served


def applied(daemon: Served, name: str) -> int:
    """Rebalances of a group that made moves."""
    return len(list(daemon.since(0, "cycle ended", group=name, outcome="applied")))


def test_each_is_balanced_for_itself_and_only_one_moves_at_a_time(
    daemon: Served, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        groups = {name: Group(tmp_path / name, daemon.socket, ranks=2, name=name) for name in NAMES}
        for group in groups.values():
            stack.callback(group.kill)
            group.start()
        until(
            lambda: min(applied(daemon, name) for name in NAMES) >= REBALANCES,
            4 * RECOVERY_S,
            daemon.tail,
        )
        for group in groups.values():
            reports = group.audit()
            assert [report.wrong for report in reports] == [[], []], group.story(reports)
            assert all(report.tables_right for report in reports)
            assert len({report.map_digest for report in reports}) == 1
    one_at_a_time(daemon)


def one_at_a_time(daemon: Served) -> None:
    """From a group's first epoch to the end of its rebalance no other group ends an epoch."""
    under_way = ""
    for line in daemon.lines:
        if line["event"] == "epoch ended":
            assert under_way in ("", line["group"]), daemon.tail()
            under_way = line["group"]
        elif line["event"] == "cycle ended" and line["group"] == under_way:
            under_way = ""
