"""Several nodes on one machine: a real daemon each, with keys, and one EP group over all of them.

Ranks are dealt out to nodes in order. They are those of `workers`, with one register and one store.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from eplbd.core.messages import Standing
from eplbd.core.placement import Placement
from eplbd.runtime.keys import generate
from tests.runtime.conftest import PATIENCE_S
from tests.runtime.nodes import free_endpoint
from tests.runtime.process import GUESTS, Process, daemon, write_config
from tests.runtime.workers import Register, Store, Worker, drive

RANKS_PER_NODE = 2
EXPERTS = 4
QUICK: dict[str, object] = {
    "policy__name": "tilt",
    "plugins__modules": [str(GUESTS / "tilt.py")],
    "balance__interval_s": 0.1,
    "balance__min_steps": 16,
    "balance__pause_s": 0.01,
    "session__heartbeat_s": 0.2,
    "cluster__interval_s": 0.1,
}


class Node:
    """One node: its folder, its address, and its daemon while one runs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.folder = name, folder / name
        self.folder.mkdir()
        self.trust = self.folder / "trust"
        self.trust.mkdir(mode=0o755)
        self.endpoint = free_endpoint()
        self.key = generate(self.folder / "keys").public.decode()
        self.served: Process
        self._stack = ExitStack()

    def configure(self, **keys: object) -> Path:
        return write_config(
            self.folder,
            **{
                **QUICK,
                "cluster__listen": self.endpoint,
                "cluster__key_file": str(self.folder / "keys/node.key_secret"),
                "cluster__trust_dir": str(self.trust),
                **keys,
            },
        )

    def start(self, *, wait: bool = True, **keys: object) -> None:
        self.served = self._stack.enter_context(daemon(self.configure(**keys)))
        if wait:
            self.served.told("READY=1")

    def stop(self) -> None:
        """Kill the daemon, if one runs."""
        self._stack.close()

    def believe(self, other: Node) -> None:
        shutil.copy(other.folder / "keys/node.key", self.trust / f"{other.name}.key")

    def doubt(self, other: Node) -> None:
        (self.trust / f"{other.name}.key").unlink()

    def reload(self) -> None:
        before = sum(said.startswith("READY=1") for said in self.served.words)
        self.served.popen.send_signal(signal.SIGHUP)
        self.served.told("READY=1", before + 1)


class Rack:
    """Nodes that trust each other, and the ranks on them; `nodes[0]` has rank 0."""

    def __init__(self, folder: Path, context: zmq.Context[zmq.Socket[bytes]], nodes: int) -> None:
        self.nodes = [Node(folder, f"node-{index}") for index in range(nodes)]
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.believe(other)
        self._context = context
        self.workers: list[Worker] = []

    def start(self, **keys: object) -> None:
        for node in self.nodes:
            node.start(wait=False, **keys)
        for node in self.nodes:
            node.served.told("READY=1")

    def attach(self, incarnation: str = "1") -> None:
        """Begin a life of the group."""
        ranks = RANKS_PER_NODE * len(self.nodes)
        initial = Placement.linear(2, EXPERTS, ranks, 3)
        register, store = Register(), Store()
        for rank in range(ranks):
            node = self.nodes[rank // RANKS_PER_NODE]

            def connect(identity: bytes, node: Node = node) -> zmq.Socket[bytes]:
                made = self._context.socket(zmq.DEALER)
                made.setsockopt(zmq.LINGER, 0)
                made.setsockopt(zmq.IDENTITY, identity)
                made.setsockopt(zmq.SNDTIMEO, int(PATIENCE_S * 1_000))
                made.connect(f"ipc://{node.folder}/w.sock")
                return made

            worker = Worker(rank, connect, register, incarnation, initial)
            worker.node, worker.store = node.name, store
            self.workers.append(worker)

    def behind(self, index: int) -> Sequence[Worker]:
        """The workers of a node."""
        return self.workers[index * RANKS_PER_NODE : (index + 1) * RANKS_PER_NODE]

    def settle(self, more: int = 1) -> None:
        """Send heat until so many more epochs are in force on every rank, on one map."""
        wanted = max(worker.agent.epoch for worker in self.workers) + more
        turn = 0

        def settled() -> bool:
            nonlocal turn
            turn += 1
            for worker in self.workers:
                # What was hot for a while is not any more: there is always something to move.
                worker.hot = turn // 400 % EXPERTS
                if worker.agent.connected and worker.agent.standing is Standing.IDLE:
                    worker.say(worker.heat(1))
            return all(worker.agent.epoch >= wanted for worker in self.workers)

        self.drive(settled, f"epoch {wanted} is in force")
        assert len({worker.agent.placement.digest for worker in self.workers}) == 1

    def drive(self, happened: Callable[[], bool], what: str) -> None:
        """Turn all workers until it happened."""
        drive(self.workers, happened, lambda: f"{what}; {self.story()}")

    def until_connected(self, index: int, *, whether: bool = True) -> None:
        """Turn all until the workers of a node have a leader, or none of them has."""
        here = self.behind(index)
        self.drive(
            lambda: all(worker.agent.connected is whether for worker in here),
            f"workers of node {index} are {'' if whether else 'not '}connected",
        )

    def story(self) -> str:
        return "\n".join(f"{node.name}: {node.served.story()}" for node in self.nodes)

    def close(self) -> None:
        for worker in self.workers:
            worker.socket.close()
        for node in self.nodes:
            node.stop()


@contextmanager
def rack_of(folder: Path, nodes: int) -> Iterator[Rack]:
    """Nodes that are not started yet; all ends with the block."""
    with zmq.Context() as context:
        rack = Rack(folder, context, nodes)
        try:
            yield rack
        finally:
            rack.close()
