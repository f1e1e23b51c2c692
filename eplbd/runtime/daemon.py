"""The daemon: receive, step, perform, in one task group.

Owns the clock, the order of start and stop, and which outside thing each effect is. Decides
nothing: whatever depends on what was said is `eplbd.core`'s. Everything runs on one loop; writing
files and reading the configuration leave it, for threads.
"""

from __future__ import annotations

import signal
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from eplbd.config import Config, Loaded
from eplbd.config import Daemon as DaemonSettings
from eplbd.core import commands as c
from eplbd.core import events as e
from eplbd.core.cluster import HangUp, Nod, Up
from eplbd.core.messages import FromLeader
from eplbd.core.node import Node
from eplbd.core.overview import overview
from eplbd.core.views import Statistics
from eplbd.errors import (
    ConfigError,
    EplbdError,
    LocalProtocolError,
    PolicyError,
    RemoteProtocolError,
)
from eplbd.runtime.cluster import Cluster, ClusterStatistics, open_cluster
from eplbd.runtime.control import Control, Seams, open_control
from eplbd.runtime.identity import identity
from eplbd.runtime.keeper import Keeper
from eplbd.runtime.link import Link, LinkStatistics, Packet, Sent, open_link
from eplbd.runtime.log import Log, LogStatistics, open_log
from eplbd.runtime.metrics import Metrics, open_metrics
from eplbd.runtime.policydesk import PolicyDesk
from eplbd.runtime.readings import Seen
from eplbd.runtime.recorder import Recorder, RecorderStatistics, open_recorder
from eplbd.runtime.reloading import Reloading
from eplbd.runtime.retention import Retention
from eplbd.runtime.saved import read_orders
from eplbd.runtime.status import document
from eplbd.runtime.store import Store, open_store
from eplbd.runtime.stream import Stream, StreamStatistics, open_stream
from eplbd.runtime.systemd import Manager
from eplbd.runtime.tuning import settings_of
from eplbd.wire.messages import AGENT, LEADER

TICK_S = 0.05
"""Deadlines of an epoch are seconds; an arm's margin, 16 forwards, is about ten of these."""

STOP_S = 5.0
"""What a committing epoch is given; serving goes on without us either way."""

SLOW_STEP_S = 0.05
PEERS_COUNTED = 16_384
"""Peers whose outgoing messages are numbered; the one that was silent longest starts again at 1."""


@dataclass(frozen=True, slots=True)
class DaemonStatistics:
    """Everything that is counted in this process."""

    node: Statistics
    link: LinkStatistics
    cluster: ClusterStatistics
    log: LogStatistics
    recorder: RecorderStatistics
    stream: StreamStatistics
    steps: int
    slowest_step_s: float
    slowest_event: str
    reload_failed: bool


class Daemon:
    """One run of the daemon, from claimed socket to exit."""

    def __init__(
        self,
        loaded: Loaded,
        read_again: Callable[[], Loaded],
        log: Log,
        environment: Mapping[str, str],
    ) -> None:
        self._started_with = loaded.config
        self._log = log
        self._reloading = Reloading(loaded, read_again, log, self._take, self._say)
        self._manager = Manager(environment)
        self._known = identity(loaded.config, environment)
        address = self._known.address if self._known is not None else None
        self._node = Node(settings_of(loaded.config, self._reloading.fixed), address)
        self._link: Link
        self._cluster: Cluster
        self._stream: Stream
        self._control: Control
        self._recorder: Recorder
        self._metrics: Metrics
        self._desk: PolicyDesk
        self._seqs: OrderedDict[bytes, int] = OrderedDict()
        self._keeper: Keeper
        self._to_reload = anyio.Event()
        self._stopped = anyio.Event()
        self.ready = False
        """Whether everything that was to be done before serving is done."""
        self._stopping = False
        self._steps = 0
        self._slowest_step_s, self._slowest_event = 0.0, ""

    async def run(self) -> None:
        """Serve until a signal says stop.

        Raises:
            ConfigError: The socket, the state directory or the policy cannot be had.
            PolicyError: The policy cannot start.
        """
        refused: EplbdError | None = None
        daemon = self._config.daemon
        with (
            open_store(Path(daemon.state_dir), _retention(daemon)) as store,
            open_link(
                daemon.socket,
                mode=int(daemon.socket_mode, 8),
                max_message_bytes=self._config.session.max_message_bytes,
            ) as self._link,
            open_cluster(self._known, self._max_bytes, self._say) as self._cluster,
            open_stream(self._config, lambda: overview(self._node)) as self._stream,
            open_control(self._config) as self._control,
            open_recorder(self._config.record, self._say) as self._recorder,
            open_metrics(self._config.metrics, self._seen) as self._metrics,
        ):
            self._restore(store)
            self._keeper = Keeper(store, Path(daemon.state_dir), self._say, self._take)
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._obey_signals, tasks)
                self._desk = PolicyDesk(tasks, self._take, self._say)
                try:
                    with self._manager.asked_to_wait(tasks):
                        await self._desk.open(self._reloading.loaded)
                except (ConfigError, PolicyError) as error:
                    refused = error
                    tasks.cancel_scope.cancel()
                else:
                    self._begin(tasks)
            if isinstance(refused, PolicyError):
                name = self._config.policy.name
                self._keeper.take(e.RememberFault(name, "start", str(refused)))
                await self._keeper.write_faults()
        if refused is not None:
            raise refused

    def statistics(self) -> DaemonStatistics:
        """Counts so far."""
        return DaemonStatistics(
            node=self._node.statistics(),
            link=self._link.statistics(),
            cluster=self._cluster.statistics(),
            log=self._log.statistics(),
            recorder=self._recorder.statistics(),
            stream=self._stream.statistics(),
            steps=self._steps,
            slowest_step_s=self._slowest_step_s,
            slowest_event=self._slowest_event,
            reload_failed=self._reloading.failed or self._cluster.failed,
        )

    @property
    def metrics_url(self) -> str:
        """Where Prometheus may scrape; empty where it may not."""
        return self._metrics.url

    def _seen(self, version: str) -> Seen:
        return Seen(self.statistics(), overview(self._node), version, time.time())

    # --- start and stop -------------------------------------------------------------------------

    def _restore(self, store: Store) -> None:
        for found in store.restore():
            if isinstance(found, e.Note):
                self._say(found)
            else:
                self._take(found)
        for note in store.tidy():
            self._say(note)
        orders, wrong = read_orders(Path(self._config.daemon.state_dir))
        self._take(c.OrdersRestored(orders))
        if wrong:
            self._say(e.Note("error", "orders refused, all is frozen", {"reason": wrong}))

    def _begin(self, tasks: TaskGroup) -> None:
        for task in (self._receive, self._stream.run, self._keeper.run, self._tick, self._ping):
            tasks.start_soon(task)
        tasks.start_soon(self._reload_when_asked, tasks)
        tasks.start_soon(self._control.run, self._seams())
        tasks.start_soon(self._cluster.run, self._take)
        self.ready = True
        self._manager.tell(READY=1, STATUS="serving, no worker yet")
        told = {} if self._known is None else {"cluster": self._known.address.endpoint}
        self._log.logger.info(
            "serving", socket=self._config.daemon.socket, metrics=self._metrics.url, **told
        )

    async def _stop(self, tasks: TaskGroup) -> None:
        """Close what can be closed in time, and what is settled, write."""
        self._manager.tell(STOPPING=1, STATUS="stopping")
        self._log.logger.info("stopping")
        self._take(e.Stopping())
        with anyio.move_on_after(STOP_S) as patience:
            await self._stopped.wait()
            await self._keeper.finish()
            await self._control.finish()
        if patience.cancelled_caught:
            self._log.logger.warning("stopped midway, the workers end the epoch", after_s=STOP_S)
        tasks.cancel_scope.cancel()

    # --- events in ------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            packets = await self._link.receive()
            self._take(*map(self._decoded, packets))
            # Under a flood nothing above waits; the ticks must come all the same.
            await anyio.lowlevel.checkpoint()

    def _decoded(self, packet: Packet) -> e.Received | e.Garbled:
        peer, frames = packet
        try:
            return e.Received(peer, *AGENT.decode(frames, self._max_bytes))
        except RemoteProtocolError as error:
            return e.Garbled(peer, str(error))

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(TICK_S)
            self._take()
            self._recorder.tell()

    async def _ping(self) -> None:
        """Feed the watchdog, but only with steps: a timer that pings proves nothing."""
        fed = 0
        while self._manager.watchdog_s:
            await anyio.sleep(self._manager.watchdog_s / 2)
            if self._steps != fed:
                fed = self._steps
                self._manager.tell(WATCHDOG=1)

    async def _obey_signals(self, tasks: TaskGroup, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self._to_reload.set()
                elif self._stopping or not self.ready:
                    tasks.cancel_scope.cancel()
                else:
                    self._stopping = True
                    tasks.start_soon(self._stop, tasks)

    # --- step -----------------------------------------------------------------------------------

    def _take(self, *events: e.Event) -> None:
        """Step the core through these events, later than whatever it was told, and perform."""
        pending: deque[e.Event] = deque((e.Tick(time.monotonic()), *events))
        while pending:
            event = pending.popleft()
            started = time.perf_counter()
            effects = self._node.step(event)
            step_s = time.perf_counter() - started
            self._node.intake.took(step_s)
            self._measure(event, step_s)
            for effect in effects:
                self._perform(effect, pending)
            if not pending:
                pending.extend(self._cluster.flush())

    def _measure(self, event: e.Event, step_s: float) -> None:
        self._steps += 1
        if step_s <= self._slowest_step_s:
            return
        self._slowest_step_s, self._slowest_event = step_s, type(event).__name__
        if step_s > SLOW_STEP_S:
            self._log.logger.warning("slow step", of=self._slowest_event, step_s=round(step_s, 3))

    # --- effects out ----------------------------------------------------------------------------

    def _perform(self, effect: e.Effect, pending: deque[e.Event]) -> None:
        self._stream.take(effect)
        self._metrics.take(effect)
        match effect:
            case e.Send(bytes() as peer, message):
                if self._send(peer, message) is Sent.UNREACHABLE:
                    self._seqs.pop(peer, None)
                    pending.append(e.Unreachable(peer))
            case e.Send() | Nod() | Up() | HangUp():
                self._cluster.take(effect)
            case e.AskPolicy():
                self._desk.ask(effect)
            case e.Persist() | e.RememberFault():
                self._keeper.take(effect)
            case c.Answer() | c.Keep() | c.RememberOrders():
                self._control.take(effect)
            case e.EpochEnded(epoch=epoch, outcome=outcome):
                self._log.effect(effect)
                workers = self._node.statistics().workers
                self._manager.tell(STATUS=f"epoch {epoch} {outcome}, {workers} workers")
            case e.CycleEnded() | e.ShadowScored() | e.Note():
                self._log.effect(effect)
            case e.OpenRecord() | e.RecordSteps() | e.RecordPlacement():
                self._recorder.take(effect)
            case e.Stop():
                self._stopped.set()

    def _say(self, note: e.Note) -> None:
        """Tell whoever watches, and the log, of what the core has no part in."""
        self._perform(note, deque())

    def _send(self, peer: bytes, message: FromLeader) -> Sent:
        seq = self._seqs.pop(peer, 0) + 1
        self._seqs[peer] = seq  # moved to the end: the first is the one that was silent longest
        if len(self._seqs) > PEERS_COUNTED:
            self._seqs.popitem(last=False)
        try:
            frames = LEADER.encode(message, seq, self._max_bytes)
        except LocalProtocolError as error:
            # The core's own deadlines end what waits for it; a daemon that falls over helps nobody.
            self._say(e.Note("error", "message not sent", {"reason": str(error)}))
            return Sent.DROPPED
        return self._link.send(peer, frames)

    @property
    def _max_bytes(self) -> int:
        return self._started_with.session.max_message_bytes

    # --- reload and control ---------------------------------------------------------------------

    @property
    def _config(self) -> Config:
        return self._reloading.loaded.config

    async def _reload_when_asked(self, tasks: TaskGroup) -> None:
        while True:
            await self._to_reload.wait()
            self._to_reload = anyio.Event()
            self._manager.reloading()
            try:
                with self._manager.asked_to_wait(tasks):
                    await self._reloading.reload(self._desk)
                    await self._cluster.reload(self._config.cluster.trust_dir)
            finally:
                self._manager.tell(READY=1)

    def _seams(self) -> Seams:
        return Seams(
            take=self._take,
            adjust=lambda change: self._reloading.adjust(change, self._desk),
            look=lambda: document(self._stream.snapshot(), self._node.orders),
            groups=lambda: sorted(self._node.balancers),
            say=self._say,
        )


def _retention(daemon: DaemonSettings) -> Retention:
    return Retention(max_bytes=daemon.state_max_bytes, keep_days=daemon.state_keep_days)


def serve(read: Callable[[], Loaded], environment: Mapping[str, str]) -> None:
    """Run a daemon until it is told to stop.

    Args:
        read: Reads the configuration; called again for every reload.
        environment: Where the service manager and the journal leave their marks.

    Raises:
        ConfigError: The configuration, the socket, the state directory or the policy cannot be had.
        PolicyError: The policy cannot start.
    """
    loaded = read()
    with open_log(loaded.config.log, environment) as log:
        try:
            anyio.run(Daemon(loaded, read, log, environment).run, backend="asyncio")
        except EplbdError:
            raise
        except Exception:  # the root: whatever it is, it must reach the journal
            log.logger.exception("the daemon failed; serving goes on, the map stays as it is")
            raise
