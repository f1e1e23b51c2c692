"""A live group for orders: a real daemon, and three ranks that forward and report all the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import zmq
from click.testing import CliRunner, Result

from eplbd.cli import main
from eplbd.core.messages import Standing
from eplbd.core.placement import Placement
from eplbd.runtime.status import Document, OrderStatus, read_document
from eplbd.wire.stream import Group
from tests.runtime.conftest import wait_until
from tests.runtime.process import GUESTS, Process, daemon, write_config
from tests.runtime.workers import Register, Worker

INITIAL = Placement.linear(2, 4, 3, 3)
"""Nine slots a layer for four experts: any rank can be spared."""

QUICK = {
    "policy__name": "tilt",
    "plugins__modules": [str(GUESTS / "tilt.py")],
    "balance__interval_s": 0.2,
    "balance__min_steps": 16,
    "balance__window_steps": 32,
    "balance__pause_s": 0.01,
    "balance__opening": "none",
}


class Engine:
    """Three ranks on a thread of their own; their sockets live there, too."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ended = threading.Event()
        self.workers: list[Worker] = []
        self.fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with zmq.Context() as context, ExitStack() as sockets:

            def connect(identity: bytes) -> zmq.Socket[bytes]:
                made = sockets.enter_context(context.socket(zmq.DEALER))
                made.setsockopt(zmq.LINGER, 0)
                made.setsockopt(zmq.IDENTITY, identity)
                made.setsockopt(zmq.SNDTIMEO, 0)
                made.connect(self._endpoint)
                return made

            register: Register = {}
            self.workers = [Worker(rank, connect, register, "1", INITIAL) for rank in range(3)]
            try:
                while not self._ended.is_set():
                    self._turn()
            except BaseException as error:
                self.fault = error
                raise

    def _turn(self) -> None:
        for worker in self.workers:
            worker.turn()
        for worker in self.workers:
            if worker.agent.connected and worker.agent.standing is Standing.IDLE:
                worker.say(worker.heat(1))
        time.sleep(0.004)

    def heat(self, expert: int) -> None:
        """Let this expert be the hot one from now on."""
        for worker in self.workers:
            worker.hot = expert

    @contextmanager
    def serving(self) -> Iterator[Engine]:
        self._thread.start()
        try:
            wait_until(lambda: len(self.workers) == 3, "the ranks are there")
            yield self
        finally:
            self._ended.set()
            self._thread.join()
            assert self.fault is None, self.fault

    def placement(self) -> Placement:
        """In force on every rank; waits out a flip."""
        wait_until(self._agree, "all ranks have one map")
        return self.workers[0].agent.placement

    def _agree(self) -> bool:
        return len({worker.agent.placement.digest for worker in self.workers}) == 1


class Live:
    """The daemon, its engine, and an operator at a terminal."""

    def __init__(self, folder: Path, config: Path, engine: Engine, process: Process) -> None:
        self.folder, self.config, self.engine, self.process = folder, config, engine, process

    def ctl(self, *words: str) -> Result:
        return CliRunner().invoke(main, ["ctl", *words, "--config", str(self.config)])

    def done(self, *words: str) -> str:
        result = self.ctl(*words, "--why", "a test")
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    def refused(self, *words: str) -> str:
        result = self.ctl(*words, "--why", "a test")
        assert result.exit_code == 1, result.output
        assert result.output.startswith("Error: ")
        return result.output

    def status(self) -> Document:
        result = self.ctl("status", "--json")
        assert result.exit_code == 0, (result.output, result.exception)
        return read_document(result.output.encode())

    def group(self) -> Group:
        (group,) = self.status().snapshot.groups
        return group

    def orders(self) -> OrderStatus:
        return next(order for order in self.status().orders if order.group == "default")

    def until(self, happened: Callable[[], bool], what: str) -> None:
        wait_until(happened, f"{what}; {self.process.story()[-3000:]}")

    def ready(self) -> None:
        """Until there is heat for a plan."""

        def heated() -> bool:
            groups = self.status().snapshot.groups
            return bool(groups) and groups[0].phase == "ready" and groups[0].window >= 32

        self.until(heated, "the group is ready and hot")

    def settles(self, act: Callable[[], object]) -> int:
        """Act, and wait until a further epoch is in force and no other is under way."""
        epoch = self.group().epoch
        act()

        def moved() -> bool:
            group = self.group()
            return group.epoch > epoch and group.epoch_now is None and group.stage == "resting"

        self.until(moved, f"an epoch after {epoch} settles")
        return self.group().epoch

    def later(self, forwards: int = 150) -> None:
        """Let the engine go on for a while."""
        target = self.engine.workers[0].forward + forwards
        self.until(lambda: self.engine.workers[0].forward > target, "forwards")

    def lines(self, command: str) -> list[dict[str, object]]:
        """The records of a command."""
        told = [line for line in self.process.lines if line["event"] == "command"]
        return [line for line in told if line["command"] == command]


@contextmanager
def live(folder: Path, **keys: object) -> Iterator[Live]:
    """Start everything; end it."""
    config = write_config(folder, **{**QUICK, **keys})
    with daemon(config) as process:
        process.told("READY=1")
        with Engine(f"ipc://{folder}/w.sock").serving() as engine:
            made = Live(folder, config, engine, process)
            made.ready()
            yield made


def hosts(placement: Placement, layer: int, expert: int) -> list[int]:
    return np.flatnonzero(placement.hosts()[layer, :, expert]).tolist()


def as_dict(document: Document) -> object:
    return msgspec.to_builtins(document)
