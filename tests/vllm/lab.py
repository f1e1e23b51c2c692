"""A served engine, the daemon beside it if there is one, and what is expected of both."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from eplbd.config import load
from eplbd.runtime.caller import call
from eplbd.runtime.status import read_document
from eplbd.wire import control as wire
from eplbd_vllm.demo.clients import Clients, answers
from eplbd_vllm.demo.engines import Server
from tests.runtime.conftest import wait_until
from tests.runtime.process import Process, daemon

RESTLESS: dict[str, object] = {
    "policy__name": "greedy",
    "log__format": "json",
    "balance__interval_s": 0.2,
    "balance__window_steps": 32,
    "balance__min_steps": 8,
    "balance__par_trigger": 1.0,
    "balance__min_gain": 0.0,
    "balance__horizon_s": 86_400.0,
    "balance__pause_s": 0.1,
    "epoch__experts_per_rank": 1,
    "epoch__margin_forwards": 4,
    "epoch__guard_forwards": 1,
    "epoch__prepare_timeout_s": 60.0,
    "epoch__stage_timeout_s": 60.0,
    "epoch__arm_timeout_s": 60.0,
    "epoch__settle_timeout_s": 60.0,
    "transfer__inflation_ceiling": 100.0,
    "session__silence_s": 60.0,
    # Any gain counts here, so chance alone would break a promise in two.
    "alarms__losing_cycles": 0,
}
"""Epochs of one expert, as soon as the heat changes, on a machine that others may keep busy."""


ATTEMPTS = 10
"""To kill a daemon before the epoch ends that it was seen in."""


NEWER = """
import eplbd.core.messages as messages
messages.WIRE_VERSION = messages.WIRE_VERSION_MIN = messages.WIRE_VERSION + 1
from eplbd.cli import main
main()
"""


@contextmanager
def newer_daemon(config: Path, socket: Path) -> Iterator[None]:
    """A daemon of the next wire version, once it listens."""
    command = [sys.executable, "-c", NEWER, "serve", "--config", str(config)]
    with subprocess.Popen(command) as popen:
        try:
            wait_until(socket.exists, "the daemon serves")
            yield
        finally:
            popen.kill()


class Lab:
    """expected: greedy tokens of the check's prompts. folder: of the daemon's configuration.

    idle_s: how long an idle while is. batched: whether they are the same in any company.
    """

    def __init__(
        self,
        folder: Path,
        server: Server,
        expected: list[list[int]],
        *,
        idle_s: float,
        batched: bool,
    ) -> None:
        self.folder, self.server, self.expected = folder, server, expected
        self.idle_s, self.batched = idle_s, batched
        self.daemon: Process | None = None
        self.stack = ExitStack()

    def start_daemon(self) -> Process:
        self.daemon = self.stack.enter_context(daemon(self.folder / "eplbd.toml"))
        self.server.wait_for(lambda: "serving" in self._lived().events(), "the daemon serves")
        return self.daemon

    def kill_daemon(self) -> None:
        """Amid an epoch: seen under way, and not ended when the daemon was."""
        for _ in range(ATTEMPTS):
            under_way = self.epoch()
            self._lived().popen.send_signal(signal.SIGKILL)
            self.stack.close()
            if under_way not in [line["epoch"] for line in self.ended()]:
                return
            self.start_daemon()
        raise AssertionError(f"{ATTEMPTS} epochs ended before their daemon did")

    def epoch(self) -> int:
        """Wait for an epoch under way; return its number."""
        config = load(self.folder / "eplbd.toml", {}).config
        found: list[int] = []

        def seen() -> bool:
            reply = call(config, wire.Status(), who="a test", why="to strike amid an epoch")
            assert isinstance(reply, wire.Stated), reply
            groups = read_document(reply.document.tobytes()).snapshot.groups
            found.extend(each.epoch_now.epoch for each in groups if each.epoch_now is not None)
            return bool(found)

        self.server.wait_for(seen, "an epoch is under way", every_s=0.0)
        return found[0]

    def ended(self) -> list[dict[str, Any]]:
        """Lines of the epochs that this daemon has ended."""
        return [line for line in self._lived().lines if line["event"] == "epoch ended"]

    def settled(self) -> int:
        """Epochs that this daemon has settled."""
        return sum(line["outcome"] == "settled" for line in self.ended())

    def frozen(self) -> list[str]:
        """Why this daemon froze the placement; nothing where it did not."""
        lines = self._lived().lines
        return [line["reason"] for line in lines if line["event"] == "placement frozen"]

    def check_amid(self) -> None:
        """Check, amid traffic, what does not depend on it."""
        if self.batched:
            self.check()

    def check(self) -> None:
        """The tokens of vLLM alone, whatever has moved."""
        assert answers(self.server) == self.expected

    @contextmanager
    def traffic(self) -> Iterator[Clients]:
        """Clients whose words change, so that there is always something to balance."""
        clients = Clients(self.server, turns=6)
        with clients.busy():
            yield clients

    def settle(self, epochs: int) -> None:
        """Wait until this daemon has settled so many epochs."""
        process = self._lived()

        def over() -> bool:
            assert process.popen.poll() is None, f"the daemon ended: {process.story()[-3000:]}"
            return self.settled() >= epochs or bool(self.frozen())

        self.server.wait_for(over, f"{epochs} epochs settle")
        assert self.frozen() == []

    def _lived(self) -> Process:
        assert self.daemon is not None
        return self.daemon
