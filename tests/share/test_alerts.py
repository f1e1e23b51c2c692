"""The alert rules and the dashboard: they name what is exported, and each alert can be provoked."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, ProcessCollector

from eplbd.cli import main
from eplbd.core.alarms import AlarmName
from eplbd.runtime.measures import DECLARED, Spread
from eplbd.share.printed import printed
from tests.share.prometheus import tool

RULES: list[dict[str, Any]] = yaml.safe_load(printed("alerts"))["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads(printed("dashboard"))
SCRAPED = {"job", "instance"}
"""Labels that the scrape adds."""

EXPORTED = {
    name: {*SCRAPED, *measure.labels, *(["le"] if isinstance(measure, Spread) else [])}
    for measure in DECLARED
    for name in (
        [f"{measure.name}_{part}" for part in ("bucket", "sum", "count")]
        if isinstance(measure, Spread)
        else [measure.name]
    )
}
FOREIGN = {
    "up",
    *(
        sample.name
        for family in ProcessCollector(registry=CollectorRegistry()).collect()
        for sample in family.samples
    ),
}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> Iterator[str]:
    """Every expression of rules, panels, variables and annotations."""
    yield from (rule["expr"] for rule in RULES)
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])
    yield from (note["expr"] for note in DASHBOARD["annotations"]["list"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"label_values\((.*), \w+\)", r"\1", variable["definition"])


def test_every_query_names_what_is_exported_with_labels_that_it_has() -> None:
    found = set()
    for query in queries():
        names = set(re.findall(r"\b(?:eplbd|process)_\w+|\bup\b", query))
        assert names, query
        assert names <= EXPORTED.keys() | FOREIGN, query
        found |= names
        for name, selector in re.findall(r"\b(eplbd_\w+)\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert labels <= EXPORTED[name], query
        for grouped in re.findall(r"\bby \(([^)]*)\)", query):
            for name in names & EXPORTED.keys():
                assert set(grouped.split(", ")) <= EXPORTED[name], query
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in found}
    unseen = {measure.name for measure in DECLARED} - shown
    assert unseen <= {
        "eplbd_groups",
        "eplbd_sessions",
        "eplbd_term",
        "eplbd_steps_total",
        "eplbd_log_lines_total",
        "eplbd_recorded_steps_total",
    }, unseen


def test_every_alarm_of_the_daemon_is_an_alert() -> None:
    watched = {found for rule in RULES for found in re.findall(r'alarm="([\w-]+)"', rule["expr"])}
    assert watched == {name.value for name in AlarmName}


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "instance" in rule["annotations"]["summary"]


def test_the_dashboard_fits_any_grafana() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"] == "eplbd"
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    text = json.dumps(DASHBOARD)
    assert "localhost" not in text
    assert "9476" not in text


def test_no_panel_lies_on_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for cell in (
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        ):
            assert cell not in taken, (panel["title"], taken[cell])
            taken[cell] = panel["title"]


@pytest.mark.parametrize("name", ["alerts", "dashboard"])
def test_they_are_printed_as_they_are(name: str) -> None:
    done = CliRunner().invoke(main, ["share", name])
    assert done.exit_code == 0
    assert done.stdout == printed(name)


# --- each alert, provoked -----------------------------------------------------------------------

E = 'job="eplbd", instance="a"'
G = f'{E}, group="g"'
SAME = {"job": "eplbd", "instance": "a"}


@dataclass(frozen=True)
class Case:
    """What makes an alert fire, and what looks like it and must not. Figures come every 30 s."""

    fires: dict[str, str]
    quiet: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    value: str = ""
    at: str = "10m"


def alarm(name: str, group: str = "g") -> Case:
    series = f'eplbd_alarm{{{E}, group="{group}", alarm="{name}"}}'
    labels = {"alarm": name} | ({"group": group} if group else {})
    return Case({series: "1x40"}, {series: "0x40"}, labels)


def grows(series: str, *, quiet: str = "7x40", **labels: str) -> Case:
    return Case({series: "0x5 1x40"}, {series: quiet}, labels)


ABORTED, SETTLED = (f'eplbd_epochs_total{{{G}, outcome="{o}"}}' for o in ("aborted", "settled"))
COMPLETE, LOST = (
    f'eplbd_heat_steps_total{{{G}, outcome="{o}"}}' for o in ("complete", "incomplete")
)
OBSERVED, PLANNED = (
    f'eplbd_imbalance_ratio{{{G}, layer="0", of="{of}"}}' for of in ("observed", "planned")
)
REFUSED = 'eplbd_messages_refused_total{{{}, reason="{}"}}'
START = f"process_start_time_seconds{{{E}}}"

CASES = {
    "EplbdDown": Case({f"up{{{E}}}": "0x40"}, {f"up{{{E}}}": "0 1x40"}),
    "EplbdRestarting": Case({START: "1+1x40"}, {START: "5x40"}, value="20"),
    "EplbdNoWorker": alarm("no-worker", ""),
    "EplbdRankMissing": alarm("rank-missing"),
    "EplbdHeatStale": alarm("heat-stale"),
    "EplbdEpochOverdue": alarm("epoch-overdue"),
    "EplbdPlacementFrozen": alarm("placement-frozen"),
    "EplbdPolicySuspended": alarm("policy-suspended", ""),
    "EplbdLatency": alarm("latency"),
    "EplbdPolicyFailing": Case(
        {f'eplbd_policy_results_total{{{E}, policy="p", outcome="timeout"}}': "0x5 1x40"},
        {f'eplbd_policy_results_total{{{E}, policy="p", outcome="ok"}}': "0+1x40"},
        {"policy": "p"},
    ),
    "EplbdEpochsAborting": Case(
        {ABORTED: "0+1x60", SETTLED: "3x60"},
        {ABORTED: "0+1x60", SETTLED: "0+2x60"},
        {"group": "g", "outcome": "aborted"},
        at="20m",
    ),
    "EplbdStalling": Case(
        {f"eplbd_stall_seconds_total{{{G}}}": "0+0.3x60"},
        {f"eplbd_stall_seconds_total{{{G}}}": "0+0.001x60"},
        {"group": "g"},
        at="20m",
    ),
    "EplbdHeatLost": Case(
        {LOST: "0+10x80", COMPLETE: "0+10x80"},
        {LOST: "0+1x80", COMPLETE: "0+10x80"},
        {"group": "g"},
        at="30m",
    ),
    "EplbdImbalanced": Case(
        {OBSERVED: "1.8x100"},
        {OBSERVED: "1.1x100", PLANNED: "1.8x100"},
        {"group": "g"},
        value="1.8",
        at="40m",
    ),
    "EplbdPaused": Case(
        {f"eplbd_paused{{{G}}}": "1x150"},
        {f"eplbd_paused{{{G}}}": "1x20 0x10 1x120"},
        {"group": "g"},
        at="70m",
    ),
    "EplbdShadowSuspended": Case(
        {f'eplbd_policy_suspended{{{E}, policy="p", role="shadow"}}': "1x40"},
        {f'eplbd_policy_suspended{{{E}, policy="p", role="active"}}': "1x40"},
        {"policy": "p", "role": "shadow"},
    ),
    "EplbdReloadFailed": Case(
        {f"eplbd_config_last_reload_successful{{{E}}}": "0x40"},
        {f"eplbd_config_last_reload_successful{{{E}}}": "1x40"},
    ),
    "EplbdNotStored": grows(f"eplbd_persist_failures_total{{{E}}}"),
    "EplbdRecordFailing": grows(f"eplbd_recorded_steps_dropped_total{{{E}}}"),
    "EplbdMessagesRefused": Case(
        {REFUSED.format(E, "garbled"): "0x5 1x40"},
        {REFUSED.format(E, "unknown"): "0+1x40"},
        {"reason": "garbled"},
    ),
    "EplbdLogLost": grows(f"eplbd_log_lines_lost_total{{{E}}}"),
    "EplbdLeaderLost": alarm("leader-lost"),
    "EplbdNodeRefused": Case(
        {f'eplbd_nodes_refused_total{{{E}, reason="unknown key"}}': "0x5 1x40"},
        {f'eplbd_nodes_refused_total{{{E}, reason="unknown key"}}': "7x40"},
        {"reason": "unknown key"},
    ),
}


def test_there_is_a_case_for_every_alert() -> None:
    assert CASES.keys() == {rule["alert"] for rule in RULES}


def rendered(text: str, labels: dict[str, str], value: str) -> str:
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels.get(found[1], ""), text)
    return re.sub(r"\{\{ \$value( \| humanize)? \}\}", value, text)


def judged(rule: dict[str, Any], case: Case, series: dict[str, str], *, fires: bool) -> object:
    """One test as promtool takes it."""
    labels = {**SAME, **case.labels, **rule["labels"]}
    notes = {key: rendered(text, labels, case.value) for key, text in rule["annotations"].items()}
    expected = [{"exp_labels": labels, "exp_annotations": notes}] if fires else []
    return {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": case.at, "alertname": rule["alert"], "exp_alerts": expected}
        ],
    }


@pytest.mark.slow
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    (rule,) = (rule for rule in RULES if rule["alert"] == alert)
    case = CASES[alert]
    (tmp_path / "alerts.yaml").write_text(printed("alerts"))
    tests = [
        judged(rule, case, case.fires, fires=True),
        judged(rule, case, case.quiet, fires=False),
    ]
    file = tmp_path / "tests.yaml"
    given = {"rule_files": ["alerts.yaml"], "evaluation_interval": "30s", "tests": tests}
    file.write_text(json.dumps(given))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_rules_are_valid(tmp_path: Path) -> None:
    file = tmp_path / "alerts.yaml"
    file.write_text(printed("alerts"))
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
