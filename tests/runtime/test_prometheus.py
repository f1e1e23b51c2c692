"""A real Prometheus scrapes a real daemon, evaluates the alerts and answers the dashboard."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eplbd.core.messages import Standing
from eplbd.share.printed import printed
from tests.runtime.conftest import Connect
from tests.runtime.process import GUESTS, Process, daemon, write_config
from tests.runtime.workers import Worker, drive, group
from tests.share.prometheus import SCRAPE_S, Prometheus, prometheus

pytestmark = pytest.mark.slow

KEYS = {
    "metrics__enabled": True,
    "metrics__port": 0,
    "plugins__modules": [str(GUESTS / "tilt.py")],
    "balance__interval_s": 0.1,
    "balance__min_steps": 16,
    "balance__pause_s": 0.01,
    "alarms__no_worker_s": 0.1,
}
GIVEN = {"$job": "eplbd", "$instance": ".*", "$group": ".*", "$__rate_interval": "10s"}
SILENT = {"Shadows", "Forward", "Heat per rank", "What links carry"}
"""Panels about what this group does not have: shadows, an engine that times its forwards, ranks on
other nodes, links that limit it."""


@contextmanager
def watched(folder: Path, **keys: object) -> Iterator[tuple[Process, Prometheus]]:
    """A daemon and a Prometheus that scrapes it by our rules."""
    rules = folder / "alerts.yaml"
    rules.write_text(printed("alerts"))
    with daemon(write_config(folder, **KEYS | keys)) as served:
        target = str(served.line("serving")["metrics"]).removeprefix("http://").partition("/")[0]
        with prometheus(folder, target, rules) as watcher:
            yield served, watcher


def seldom(happened: Callable[[], bool]) -> Callable[[], bool]:
    """Ask as often as there is anything new: more would only take the machine from others."""
    asked_at = time.monotonic()

    def asked() -> bool:
        nonlocal asked_at
        if time.monotonic() < asked_at + SCRAPE_S:
            return False
        asked_at = time.monotonic()
        return happened()

    return asked


def hot(workers: list[Worker], happened: Callable[[], bool]) -> Callable[[], bool]:
    """Send heat until it `happened`."""
    due = seldom(happened)

    def asked() -> bool:
        for worker in workers:
            if worker.agent.standing is Standing.IDLE:
                worker.say(worker.heat(1))
        return due()

    return asked


def shown(watcher: Prometheus) -> dict[str, int]:
    """Series that each panel of the dashboard finds."""
    found = {}
    for panel in json.loads(printed("dashboard"))["panels"]:
        if panel["type"] != "row":
            queries = [target["expr"] for target in panel["targets"]]
            for name, value in GIVEN.items():
                queries = [query.replace(name, value) for query in queries]
            found[panel["title"]] = sum(len(watcher.values(query)) for query in queries)
    return found


BROKEN = """
import eplbd


class Broken:
    name = "broken"
    eplbd_api = 1

    def propose(self, heat, topology, current, budget):
        if current.slots.shape == (2, 2, 3):  # the group's own, not the warm-up's
            raise ValueError("no")
        return current


@eplbd.hookimpl
def eplbd_register_policies(register):
    register(Broken)
"""


def test_a_group_at_work_fills_the_dashboard(tmp_path: Path, connect: Connect) -> None:
    with watched(tmp_path, policy__name="tilt") as (_, watcher):
        workers = group(connect)
        settled = 'eplbd_epochs_total{outcome="settled"} > 0'
        drive(workers, hot(workers, lambda: bool(watcher.values(settled))), "an epoch is scraped")
        rated = "rate(eplbd_moves_total[10s])"
        drive(workers, hot(workers, lambda: bool(watcher.values(rated))), "there is a rate")

        def empty() -> set[str]:
            return {title for title, series in shown(watcher).items() if not series} - SILENT

        drive(
            workers, hot(workers, lambda: not empty()), lambda: f"{empty()} have something to show"
        )
        assert watcher.values('up{job="eplbd"}') == [1]
        assert watcher.values("sum(eplbd_moves_total)") > [0]
        used = "sum(eplbd_bubble_used_ratio_sum) / sum(eplbd_bubble_used_ratio_count)"
        assert watcher.values(used) == [0.25], "as the workers say"
        rules = watcher.ask("api/v1/rules")["groups"][0]["rules"]
        assert [r["name"] for r in rules] == re.findall(r"alert: (\w+)", printed("alerts"))
        assert {r["health"] for r in rules} == {"ok"}, [r.get("lastError") for r in rules]
        assert "EplbdPlacementFrozen" not in watcher.firing()


def test_a_daemon_that_waits_in_vain_raises_an_alert_that_ends_with_the_first_worker(
    tmp_path: Path, connect: Connect
) -> None:
    with watched(tmp_path) as (_, watcher):
        drive([], seldom(lambda: "EplbdNoWorker" in watcher.firing()), "the alert fires")
        workers = group(connect)
        drive(workers, seldom(lambda: "EplbdNoWorker" not in watcher.firing()), "it has ended")


def test_a_policy_that_fails_raises_alerts(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    keys = {"policy__name": "broken", "policy__failures_until_suspended": 1}
    with watched(tmp_path, **keys | {"plugins__modules": [str(tmp_path / "broken.py")]}) as (
        _,
        watcher,
    ):
        workers = group(connect)
        wanted = {"EplbdPolicySuspended", "EplbdPolicyFailing"}
        drive(workers, hot(workers, lambda: wanted <= watcher.firing()), "both alerts fire")
        drive(workers, hot(workers, lambda: wanted <= watcher.firing()), "both alerts fire")
