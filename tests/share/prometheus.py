"""A real Prometheus: the machine's own, or Debian's package unpacked beside the caches."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.runtime.conftest import PATIENCE_S, wait_until

UNPACKED = Path(__file__).parents[2] / ".make/prometheus"
FETCH_S = 120.0
SCRAPE_S = 0.25
EVERY = f"{SCRAPE_S * 1_000:.0f}ms"


@cache
def _fetched() -> str:
    """Unpack the package into `UNPACKED`; why that cannot be, empty if it is there."""
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt is None or dpkg is None:
        return "neither installed nor to be had by apt"
    UNPACKED.mkdir(parents=True, exist_ok=True)
    try:
        for command in ([apt, "download", "prometheus"], [dpkg, "-x", "package.deb", "."]):
            for found in UNPACKED.glob("prometheus_*.deb"):
                found.rename(UNPACKED / "package.deb")
            subprocess.run(command, cwd=UNPACKED, capture_output=True, check=True, timeout=FETCH_S)
    except (subprocess.SubprocessError, OSError) as error:
        return f"not installed, and apt has none for us: {error}"
    (UNPACKED / "package.deb").unlink()
    return ""


def tool(name: str) -> str:
    """Path of `prometheus` or `promtool`; the test is skipped where there is none."""
    unpacked = UNPACKED / "usr/bin" / name
    if installed := shutil.which(name):
        return installed
    if not unpacked.exists() and (reason := _fetched()):
        pytest.skip(f"no {name}: {reason}")
    return str(unpacked)


class Prometheus:
    """One that runs."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **words: str) -> Any:  # noqa: ANN401 - JSON of a foreign interface
        """The data of an answer; an error of Prometheus is one of the test."""
        with urlopen(f"{self._url}/{path}?{urlencode(words)}", timeout=PATIENCE_S) as answer:  # noqa: S310 - ours
            found = json.load(answer)
        assert found["status"] == "success"
        return found["data"]

    def values(self, query: str) -> list[float]:
        """Figures of all series that a query finds now."""
        return [float(row["value"][1]) for row in self.ask("api/v1/query", query=query)["result"]]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = self.ask("api/v1/alerts")["alerts"]
        return {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}

    @property
    def is_ready(self) -> bool:
        try:
            self.ask("api/v1/query", query="1")
        except (URLError, ConnectionError, TimeoutError):
            return False
        return True


@contextmanager
def prometheus(folder: Path, target: str, rules: Path) -> Iterator[Prometheus]:
    """Run one that scrapes `target` (host and port) as job eplbd, four times a second."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config: Mapping[str, object] = {
        "global": {"scrape_interval": EVERY, "evaluation_interval": EVERY},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "eplbd",
                "scrape_timeout": EVERY,
                "static_configs": [{"targets": [target]}],
            }
        ],
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config))  # every JSON is YAML
    command = [
        tool("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}",
    ]
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        made = Prometheus(f"http://{address}")
        try:
            wait_until(lambda: made.is_ready or process.poll() is not None, "Prometheus answers")
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            wait_until(lambda: made.values("up") == [1], "the daemon is scraped")
            yield made
        finally:
            process.terminate()
