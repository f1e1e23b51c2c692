"""The exposition: what is measured, in Prometheus' text, over HTTP. The only prometheus_client.

Owns the registry, the histograms and the way from the server's thread to the loop: figures are read
on the loop, when somebody asks, and written out beside it. Must not know what a metric means.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from eplbd.config import Metrics as Settings
from eplbd.core.events import Effect
from eplbd.core.totals import COUNTED
from eplbd.errors import ConfigError
from eplbd.runtime.measure import Measure
from eplbd.runtime.measures import MEASURES, SPREADS
from eplbd.runtime.readings import Seen

PATIENCE_S = 5.0
"""How long a scrape waits for the loop: half of Prometheus' own patience. A daemon that is stuck is
one that cannot be scraped."""


class Metrics(Collector):
    """Everything that is measured, as families for the registry.

    look: what to read the figures from; called on `loop`, with the release.
    """

    def __init__(
        self,
        look: Callable[[str], Seen],
        loop: asyncio.AbstractEventLoop,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._look, self._loop, self._patience_s = look, loop, patience_s
        self._version = version("eplbd")
        self.url = ""
        """Where it is served; empty if it is not."""
        self._histograms = [
            Histogram(d.name, d.about, d.labels, registry=None, buckets=d.buckets) for d in SPREADS
        ]

    def take(self, effect: Effect) -> None:
        """Take what an effect tells into the histograms."""
        if not isinstance(effect, COUNTED):
            return
        for spread, histogram in zip(SPREADS, self._histograms, strict=True):
            for labels, figure in spread.read(effect):
                histogram.labels(*labels).observe(figure)

    def describe(self) -> Iterator[Metric]:
        """All families without figures: to be registered is not to be scraped."""
        yield from map(_family, MEASURES)
        yield from (Metric(d.name, d.about, "histogram") for d in SPREADS)

    def collect(self) -> Iterator[Metric]:
        """All families; called by the server's thread, and fails if the loop does not answer."""
        seen = asyncio.run_coroutine_threadsafe(self._seen(), self._loop).result(self._patience_s)
        for measure in MEASURES:
            family = _family(measure)
            for labels, figure in measure.read(seen):
                family.add_metric(labels, figure)
            yield family
        for histogram in self._histograms:
            yield from histogram.collect()

    async def _seen(self) -> Seen:
        return self._look(self._version)


def _family(measure: Measure) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    return kind(measure.name, measure.about, labels=measure.labels)


@contextlib.contextmanager
def open_metrics(settings: Settings, look: Callable[[str], Seen]) -> Iterator[Metrics]:
    """The metrics of the daemon on this loop, served while the block runs if that is wanted.

    Raises:
        ConfigError: The address cannot be had.
    """
    metrics = Metrics(look, asyncio.get_running_loop())
    if not settings.enabled:
        yield metrics
        return
    # A series more for each, all of which would say when the daemon started.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    address, port = settings.address, settings.port
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise ConfigError(
            f"metrics.port: cannot listen on {address} port {port}: {error.strerror}; set another "
            "port or address, or metrics.enabled = false"
        ) from error
    metrics.url = f"http://{address}:{server.server_port}/metrics"
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
