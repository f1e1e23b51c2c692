"""`vllm serve` on two nodes: one EP group over both, and a daemon beside each half of it.

The nodes are network namespaces with host names of their own; engine and daemons have a network
each, as in `tests/cluster`. Clients ask the first node.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from eplbd_vllm.demo.clients import Clients, answers
from eplbd_vllm.demo.engines import (
    PATIENCE_S,
    Engine,
    Server,
    environment,
    segments,
    serve_command,
    started,
)
from tests.chaos.served import Served
from tests.cluster.hosts import ENGINE, Host, open_room, why_not
from tests.cluster.lab import DELAY_S, LOSS, PORT, keygen, trust
from tests.vllm.engines import BIN
from tests.vllm.lab import RESTLESS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(why_not()), reason=f"no hosts made of namespaces: {why_not()}"),
]

EPOCHS = 20
HTTP, RENDEZVOUS = "8000", "13345"
"""Ports of the first node."""


class Within(HTTPConnection):
    """From inside the host's network, which this process is not in."""

    def __init__(self, host: Host) -> None:
        super().__init__("127.0.0.1", int(HTTP), timeout=PATIENCE_S)
        self._where = host

    def connect(self) -> None:
        """As above. Raises ConnectionRefusedError where nobody listens yet."""
        self.sock = socket.socket(fileno=self._where.within(self._socket))
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect((self.host, self.port))

    def _socket(self) -> int:
        # Of the network of the thread that makes it, whoever connects it then.
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()


class Far(Server):
    """The first node's engine."""

    def __init__(self, engine: Engine, host: Host, model: str) -> None:
        super().__init__(engine, int(HTTP), model, segments())
        self._where = host

    def connection(self) -> HTTPConnection:
        """See `Server`."""
        return Within(self._where)


@dataclass(frozen=True)
class Nodes:
    """daemons: the first node's leads. server: the first node's half of the engine, which answers.

    other: the second node's half. expected: tokens of the check's prompts.
    """

    daemons: list[Served]
    server: Far
    other: Engine
    expected: list[list[int]]

    def settled(self) -> int:
        """Epochs, of all lives of the leader."""
        return len(list(self.daemons[0].since(0, "epoch ended", outcome="settled")))

    def settle(self, epochs: int) -> None:
        """Wait for so many more."""
        enough = self.settled() + epochs
        self.server.wait_for(lambda: self.settled() >= enough, f"{epochs} epochs settle")
        assert not list(self.daemons[0].since(0, "placement frozen"))

    def check(self) -> None:
        """The tokens of one rank."""
        found = answers(self.server)
        assert found == self.expected, self.story()

    def story(self) -> str:
        """For a test that fails."""
        tails = [served.tail() for served in self.daemons]
        return "\n".join([self.server.story(), self.other.story(), *tails])


@pytest.fixture
def nodes(
    model_of: Callable[[str], Path], reference: Callable[[str], dict[str, Any]], tmp_path: Path
) -> Iterator[Nodes]:
    expected = reference("qwen3")["tokens"]
    with ExitStack() as stack:
        room = stack.enter_context(open_room(("first", "second"), delay_s=DELAY_S, loss=LOSS))
        daemons = [beside(stack, host, tmp_path / host.name) for host in room.hosts]
        for served, other, host in zip(daemons, daemons[::-1], room.hosts[::-1], strict=True):
            (served.folder / "trust").mkdir()
            trust(served, other, host.name)
            served.start(wait=False)
        engines = [
            stack.enter_context(half(host, served, model_of("qwen3"), room.hosts[0]))
            for host, served in zip(room.hosts, daemons, strict=True)
        ]
        server = Far(engines[0], room.hosts[0], "qwen3")
        server.ready()
        yield Nodes(daemons, server, engines[1], expected)


def beside(stack: ExitStack, host: Host, folder: Path) -> Served:
    """A host's daemon, with keys, not started; it ends with the stack."""
    folder.mkdir()
    served = Served(folder, host.prefix)
    stack.callback(served.close)
    keygen(served)
    cluster = {
        "cluster__listen": f"tcp://{host.cluster}:{PORT}",
        "cluster__key_file": str(folder / "keys" / "node.key_secret"),
        "cluster__trust_dir": str(folder / "trust"),
    }
    served.configure(**RESTLESS, **cluster)
    return served


def half(host: Host, served: Served, model: Path, first: Host) -> AbstractContextManager[Engine]:
    """A host's half of the engine, as long as the block."""
    options = ["--enforce-eager", "--data-parallel-size", "2", "--data-parallel-size-local", "1"]
    options += ["--data-parallel-address", first.engine, "--data-parallel-rpc-port", RENDEZVOUS]
    options += ["--enable-expert-parallel", "--enable-eplb"]
    options += ["--eplb-config.num_redundant_experts", "2"]
    if host is first:
        options += ["--port", HTTP, "--host", "127.0.0.1"]
    else:
        options += ["--headless", "--data-parallel-start-rank", "1"]
    own = {"VLLM_HOST_IP": host.engine, "GLOO_SOCKET_IFNAME": ENGINE}
    command = [*host.prefix, *serve_command(BIN, model, *options)]
    return started(command, served.folder / "engine.log", environment(served.socket, **own))


def test_experts_move_between_nodes_and_tokens_stay(nodes: Nodes) -> None:
    with Clients(nodes.server, turns=6).busy():
        nodes.settle(EPOCHS)
        nodes.check()
        nodes.daemons[1].kill()
        nodes.check()
        nodes.daemons[1].start()
        nodes.settle(2)
        nodes.check()
    assert nodes.daemons[0].line("group gathered")["ranks"] == 2, nodes.story()
    assert len(nodes.server.lines("eplbd balances this engine")) == 1
    nodes.server.stop()
    nodes.other.stop()
