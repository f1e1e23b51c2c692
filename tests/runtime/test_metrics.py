"""The exposition of a real daemon, and what the tables promise about it."""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import anyio
import anyio.to_thread
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from eplbd.config import Metrics as Settings
from eplbd.core.messages import Standing
from eplbd.errors import ConfigError
from eplbd.runtime import measures
from eplbd.runtime.measures import DECLARED
from eplbd.runtime.metrics import Metrics, open_metrics
from eplbd.runtime.readings import Seen
from tests.runtime.conftest import PATIENCE_S, Connect
from tests.runtime.inside import serving
from tests.runtime.process import GUESTS
from tests.runtime.workers import Worker, drive, group, welcomed

DOCUMENT = Path(measures.__file__).with_name("METRICS.md")
BEGIN, END = "<!-- metrics: begin -->\n", "<!-- metrics: end -->\n"

KEYS = {
    "metrics__enabled": True,
    "metrics__port": 0,
    "policy__name": "tilt",
    "plugins__modules": [str(GUESTS / "tilt.py")],
    "balance__interval_s": 0.1,
    "balance__min_steps": 16,
    "balance__pause_s": 0.01,
}


def scraped(url: str) -> dict[str, Metric]:
    """Families by name, as Prometheus reads them."""
    with urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310 - our own daemon
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(families: dict[str, Metric], name: str, **labels: str) -> list[float]:
    """Figures of the series that carry these labels."""
    return [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def settle(workers: list[Worker], url: str) -> dict[str, Metric]:
    """Send heat until the daemon says that a rebalance was measured."""
    found: dict[str, Metric] = {}

    def measured() -> bool:
        for worker in workers:
            if worker.agent.standing is Standing.IDLE:
                worker.say(worker.heat(1))
        if workers[0].forward % 20 == 0:
            found.update(scraped(url))
        return bool(samples(found, "eplbd_cycle_imbalance_ratio", of="realised"))

    drive(workers, lambda: welcomed(workers), "both were welcomed")
    drive(workers, measured, "a rebalance was applied and measured")
    return found


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_rebalance_is_told_as_it_was(tmp_path: Path, connect: Connect) -> None:
    uneven = {"balance__rank_speed": ["1=0.9"], "transfer__node_bytes_per_s": 1e9}
    async with serving(tmp_path, **KEYS, **uneven) as served:
        url = served.metrics_url
        empty = await anyio.to_thread.run_sync(scraped, url)
        assert samples(empty, "eplbd_sessions") == [0]
        workers = group(connect)
        found = await anyio.to_thread.run_sync(settle, workers, url)
        of = {"group": "default"}
        settled = sum(samples(found, "eplbd_epochs_total", outcome="settled", **of))
        assert settled > 0
        assert samples(found, "eplbd_epoch", **of)[0] >= settled
        count = samples(found, "eplbd_epoch_duration_seconds_count", **of, phase="stage")
        assert count == [settled]
        assert samples(found, "eplbd_workers", state="attached") == [2]
        moves = samples(found, "eplbd_moves_total", **of)
        assert sum(moves) > 0
        assert samples(found, "eplbd_moves_total", link="network") == [0], "one node"
        assert samples(found, "eplbd_transfer_bytes_total") == [1_000 * n for n in moves]
        before, predicted, realised = (
            samples(found, "eplbd_cycle_imbalance_ratio", of=of)[0]
            for of in ("before", "predicted", "realised")
        )
        assert realised == pytest.approx(predicted, rel=0.01), "the load never changes"
        assert before >= realised
        assert len(samples(found, "eplbd_imbalance_ratio", of="observed")) == 2
        assert samples(found, "eplbd_rank_speed_ratio", **of) == [1.0, 0.9]
        assert samples(found, "eplbd_link_bytes_per_second", link="node", **of) == [1e9]
        assert samples(found, "eplbd_link_bytes_per_second", link="network") == [], "one node"
        assert samples(found, "eplbd_policy_results_total", policy="tilt", outcome="ok")[0] > 0


@pytest.mark.slow
@pytest.mark.anyio
async def test_everything_that_is_declared_is_exported_and_nothing_else(
    tmp_path: Path, connect: Connect
) -> None:
    async with serving(tmp_path, **KEYS) as served:
        workers = group(connect)
        found = await anyio.to_thread.run_sync(settle, workers, served.metrics_url)
    declared = {m.name.removesuffix("_total"): m for m in DECLARED}
    assert {name for name in found if name.startswith("eplbd_")} == set(declared)
    for name, measure in declared.items():
        assert found[name].type == measure.kind
        assert found[name].documentation == measure.about
        labels = {key for s in found[name].samples for key in s.labels}
        assert labels - {"le"} <= set(measure.labels)
    assert "process_resident_memory_bytes" in found


@pytest.mark.anyio
async def test_a_port_that_is_taken_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"metrics.port: cannot listen .* {port}"),
            open_metrics(Settings(port=port), unseen),
        ):
            pass


@pytest.mark.anyio
async def test_nothing_listens_where_it_is_not_wanted() -> None:
    with open_metrics(Settings(enabled=False), unseen) as metrics:
        assert metrics.url == ""


@pytest.mark.anyio
async def test_to_be_registered_is_not_to_be_read() -> None:
    with open_metrics(Settings(enabled=False), unseen) as metrics:
        CollectorRegistry().register(metrics)


@pytest.mark.anyio
async def test_a_loop_that_is_stuck_fails_the_scrape_and_a_scrape_holds_up_no_loop() -> None:
    metrics = Metrics(unseen, asyncio.get_running_loop(), patience_s=0.05)
    with ThreadPoolExecutor(1) as server:
        scrape = server.submit(lambda: list(metrics.collect()))
        with pytest.raises(TimeoutError):
            scrape.result(PATIENCE_S)  # the loop does nothing else meanwhile
    with pytest.raises(AssertionError, match="nobody asked"):
        await anyio.to_thread.run_sync(lambda: list(metrics.collect()))


def unseen(_version: str) -> Seen:
    raise AssertionError("nobody asked")


def test_names_follow_the_rules() -> None:
    names = [m.name for m in DECLARED]
    assert len(set(names)) == len(names)
    for measure in DECLARED:
        assert measure.name.startswith("eplbd_")
        assert "expert" not in measure.labels, "15,000 series per metric"
        assert measure.about.endswith(".")
        assert not measure.name.endswith(("_ms", "_us", "_mb", "_percent"))


def table() -> str:
    """The declarations as a table."""
    rows = [f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.about} |" for m in DECLARED]
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows, ""])


def test_the_document_lists_what_there_is() -> None:
    text = DOCUMENT.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    wanted = f"{head}{BEGIN}{table()}{END}{tail}"
    if os.environ.get("EPLBD_UPDATE"):
        DOCUMENT.write_text(wanted)
    assert text == wanted or os.environ.get("EPLBD_UPDATE"), "EPLBD_UPDATE=1 writes it anew"
