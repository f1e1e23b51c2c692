"""A group of real workers behind a relay, and the ways to talk to it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec

from tests.chaos import control as c
from tests.chaos.proxy import Proxy
from tests.chaos.waiting import until

REPOSITORY = Path(__file__).resolve().parents[2]
START_S = 60.0
"""torch, the process groups, the model; five seconds on an idle machine."""
ANSWER_S = 25.0
"""More than a worker itself waits for a forward."""
SETTLE_S = 20.0
POLL_S = 0.03
"""A report costs its rank some of the time that is measured."""
AHEAD = 6
"""Forwards: orders for a forward have to reach all ranks before it."""


class Rank:
    """One worker's process and its control channel. prefix: a command that runs another."""

    def __init__(self, setting: c.Setting, log: IO[bytes], prefix: Sequence[str] = ()) -> None:
        self.setting = setting
        self.popen = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.chaos.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._answers.put(line)
        self.popen.stdout.close()
        self._answers.put(b"")

    def tell(self, what: msgspec.Struct) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(msgspec.json.encode(what) + b"\n")
        self.popen.stdin.flush()

    def answer(self, deadline_s: float = ANSWER_S) -> bytes:
        try:
            line = self._answers.get(timeout=deadline_s)
        except queue.Empty:
            line = b""
        assert line, f"rank {self.setting.rank} does not answer (exit {self.popen.poll()})"
        return line

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        if self.popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.popen.stdin.close()
        self._reader.join()


class Ranks:
    """Workers of one life of the group, and the ways to talk to them."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder = folder
        folder.mkdir()
        self.ranks = ranks
        self.workers: list[Rank] = []
        self._stack = contextlib.ExitStack()
        self.dead = False

    def _setting(self, rank: int, port: int) -> c.Setting:
        raise NotImplementedError

    def _prefix(self, rank: int) -> Sequence[str]:
        """What a rank's command runs under."""
        return ()

    def start(self) -> None:
        """Start the workers and return when all of them run forwards."""
        port = 0
        for rank in range(self.ranks):
            log = self._stack.enter_context((self.folder / f"rank{rank}.log").open("wb"))
            setting = self._setting(rank, port)
            worker = Rank(setting, log, self._prefix(rank))
            self.workers.append(worker)
            worker.tell(setting)
            if rank == 0:
                port = msgspec.json.decode(worker.answer(START_S))["port"]
        for worker in self.workers:
            worker.tell(c.Tell())
        for worker in self.workers:
            worker.answer(START_S)

    def kill(self) -> None:
        """SIGKILL all of them, at once."""
        self.dead = True
        for worker in self.workers:
            worker.kill()
        self._stack.close()

    def leave(self) -> list[int]:
        """Let all leave before one forward; exit statuses."""
        self.ask(c.Leave(self.newest() + AHEAD))
        codes = [worker.popen.wait(SETTLE_S) for worker in self.workers]
        self.kill()
        return codes

    # --- talk -----------------------------------------------------------------------------------

    def ask(self, command: c.Command, ranks: Sequence[int] | None = None) -> list[c.Report]:
        """Give a command to some ranks (default: all); their reports."""
        chosen = [self.workers[rank] for rank in (range(self.ranks) if ranks is None else ranks)]
        for worker in chosen:
            worker.tell(command)
        return [msgspec.json.decode(worker.answer(), type=c.Report) for worker in chosen]

    def reports(self) -> list[c.Report]:
        """How all stand."""
        return self.ask(c.Tell())

    def newest(self) -> int:
        """The newest forward of any rank."""
        return max(report.forward for report in self.reports())

    def audit(self) -> list[c.Report]:
        """How all stand between the same two forwards."""
        return self.ask(c.Audit(self.newest() + AHEAD))

    def inject(self, rank: int, fault: c.Fault, seconds: float = 0.0) -> None:
        """Let a fault strike on a rank."""
        self.ask(c.Inject(fault, seconds), [rank])

    def struck(self, rank: int, fault: c.Fault, times: int = 1) -> None:
        """Wait until it has."""
        self.until(
            lambda reports: reports[rank].struck.count(fault) >= times, f"{fault} on rank {rank}"
        )

    def until(
        self,
        happened: Callable[[list[c.Report]], bool],
        what: str,
        deadline_s: float = SETTLE_S,
    ) -> list[c.Report]:
        """Wait for a condition on the reports of all ranks; the reports that met it."""
        last: list[c.Report] = []

        def met() -> bool:
            last[:] = self.reports()
            return happened(last)

        until(met, deadline_s, lambda: f"{what}\n{self.story(last)}", poll_s=POLL_S)
        return last

    # --- for a test that fails ------------------------------------------------------------------

    def story(self, reports: Sequence[c.Report] = ()) -> str:
        """How the ranks stand, and the end of their logs."""
        stand = "\n".join(
            f"rank {r.rank}: forward {r.forward} epoch {r.epoch} term {r.term} {r.standing}"
            f"{'' if r.connected else ' alone'} lane {r.lane} struck {r.struck}"
            for r in reports
        )
        logs = "\n".join(
            f"rank {rank}: " + (self.folder / f"rank{rank}.log").read_text(errors="replace")[-1500:]
            for rank in range(self.ranks)
        )
        return f"{stand}\n{logs}"


class Group(Ranks):
    """Workers behind a relay. Enter it: they run forwards; leave it: nothing is left."""

    def __init__(
        self,
        folder: Path,
        daemon: str,
        *,
        ranks: int = 3,
        dispatch: str = "all-to-all",
        period_s: float = 0.025,
        transfer_timeout_s: float = 10.0,
        name: str = "chaos",
    ) -> None:
        super().__init__(folder, ranks)
        self._name = name
        self.proxy = Proxy(f"ipc://{folder}/front.sock", daemon)
        self._shared = self.proxy.front, dispatch, period_s, transfer_timeout_s

    def _setting(self, rank: int, port: int) -> c.Setting:
        return c.Setting(rank, self.ranks, port, *self._shared, group=self._name)

    def start(self) -> None:
        """Start the relay and the workers, and return when all of them run forwards."""
        self._stack.enter_context(self.proxy)
        super().start()

    def story(self, reports: Sequence[c.Report] = ()) -> str:
        """What passed the relay last, then as above."""
        passed = "\n".join(list(self.proxy.story)[-60:])
        return f"{passed}\n{super().story(reports)}"
