"""Three hosts with a daemon and two ranks each, one EP group of six over all of them.

Owns the set-up: keys, configurations, processes; and which host is which. The judgement after a
scenario is the chaos suite's: balancing resumes, nobody waited, all are on one map, and no output
differed from the twin's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chaos import control as c
from tests.chaos.group import REPOSITORY, Ranks
from tests.chaos.lab import QUICK, RECOVERY_S, Bound, Lab
from tests.chaos.served import Served
from tests.cluster.bystander import Bystanders, bystanders
from tests.cluster.hosts import ENGINE, Host, Room, open_room

NAMES = ("alpha", "beta", "gamma")
RANKS_PER_HOST = 2
RANKS = len(NAMES) * RANKS_PER_HOST
PORT = 7946
DELAY_S, LOSS = 0.002, 0.01
"""Of the daemons' network, one way: of a data hall across the campus, on a bad day."""
PERIOD_S = 0.1
"""Six ranks, three daemons and three policies share two cores."""

SPREAD: dict[str, object] = {
    **QUICK,
    "session__heartbeat_s": 0.2,
    "epoch__prepare_timeout_s": 6.0,
    "epoch__stage_timeout_s": 12.0,
    "epoch__arm_timeout_s": 4.0,
    "epoch__decide_timeout_s": 3.0,
    "epoch__settle_timeout_s": 4.0,
    "epoch__resend_s": 0.3,
    "cluster__interval_s": 0.1,
}


class Spread(Ranks):
    """Ranks two by two on hosts, each beside the daemon of its host."""

    def __init__(self, folder: Path, hosts: Sequence[Host], sockets: Sequence[str]) -> None:
        super().__init__(folder, RANKS)
        self._hosts, self._sockets = hosts, sockets

    def _setting(self, rank: int, port: int) -> c.Setting:
        return c.Setting(
            rank=rank,
            ranks=self.ranks,
            port=port,
            socket=self._sockets[rank // RANKS_PER_HOST],
            dispatch="all-to-all",
            period_s=PERIOD_S,
            transfer_timeout_s=10.0,
            host=self._hosts[0].engine,
            interface=ENGINE,
        )

    def _prefix(self, rank: int) -> Sequence[str]:
        return self._hosts[rank // RANKS_PER_HOST].prefix


class ClusterLab(Lab):
    """`daemons[0]` is beside rank 0 and leads; the others relay."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ranks=RANKS)
        self._stack = contextlib.ExitStack()
        self._lives = itertools.count()
        self.room: Room
        self._bystanders: Bystanders
        self.daemons: list[Served] = []

    # --- building -------------------------------------------------------------------------------

    def build(self) -> None:
        """Start everything, and measure what a gap is where nothing goes wrong."""
        self.close()
        folder = self._folder / str(next(self._lives))
        self.room = self._stack.enter_context(open_room(NAMES, delay_s=DELAY_S, loss=LOSS))
        self._bystanders = self._stack.enter_context(bystanders(len(NAMES)))
        for host in self.room.hosts:
            (folder / host.name).mkdir(parents=True)
            self.daemons.append(Served(folder / host.name, host.prefix))
        self.daemon = self.daemons[0]
        for served in self.daemons:
            keygen(served)
        self.exchange_keys()
        self.configure()
        self._built = True
        self.start_group()
        self.group.ask(c.Forget())
        self.group.ask(c.RoundTrip())
        for served in self.daemons:
            served.start(wait=False)
        self.settles_further(epochs=2)
        reports = self.group.reports()
        self.bound = Bound(max(r.max_gap_s for r in reports), max(r.register_s for r in reports))
        self.configure()
        for served in self.daemons:
            served.kill()
        self.settles_further()
        self.sound = True

    def start_group(self) -> None:
        """Begin a life of the group."""
        folder = self.daemon.folder / f"group{next(self._lives)}"
        sockets = [served.socket for served in self.daemons]
        self.group = Spread(folder, self.room.hosts, sockets)  # type: ignore[assignment]  # no proxy
        self.group.start()

    def configure(self, **keys: object) -> None:
        """Write every host's configuration."""
        for host, served in zip(self.room.hosts, self.daemons, strict=True):
            served.configure(
                **{
                    **SPREAD,
                    "session__silence_s": self.bound.silence_s,
                    "cluster__listen": f"tcp://{host.cluster}:{PORT}",
                    "cluster__key_file": str(served.folder / "keys" / "node.key_secret"),
                    "cluster__trust_dir": str(served.folder / "trust"),
                    **keys,
                }
            )

    def exchange_keys(self) -> None:
        """Copy every host's public key to all others."""
        for served in self.daemons:
            shutil.rmtree(served.folder / "trust", ignore_errors=True)
            (served.folder / "trust").mkdir()
            for host, other in zip(self.room.hosts, self.daemons, strict=True):
                if other is not served:
                    trust(served, other, host.name)

    def close(self) -> None:
        """End every process, then the hosts."""
        if self._built:
            self._built = False
            self.group.kill()
        for served in self.daemons:
            served.close()
        self.daemons.clear()
        self._stack.close()

    # --- what scenarios need --------------------------------------------------------------------

    @contextlib.contextmanager
    def scenario(self, name: str, *, register_s: float = 0.0) -> Iterator[None]:
        """As above; what bystanders waited for the machine meanwhile is no fault of eplbd's."""
        if not self.sound:
            self.build()
        self._bystanders.delay_s()
        with super().scenario(name, register_s=register_s):
            yield

    def nobody_waited(self, name: str, reports: list[c.Report], register_s: float = 0.0) -> None:
        """As above."""
        super().nobody_waited(name, reports, register_s + self._bystanders.delay_s())

    def settles_further(self, epochs: int = 1) -> None:
        """Start the daemons that are not alive, then as above."""
        for served in self.daemons:
            if not served.alive:
                served.start(wait=False)
        super().settles_further(epochs)

    def in_an_epoch(self) -> None:
        """Return while one is under way: some rank has prepared, none has flipped."""
        self.group.until(
            lambda now: any(r.standing not in {"idle", "confirmed"} for r in now),
            "an epoch is under way",
            RECOVERY_S,
        )

    def connected(self, host: int, *, whether: bool) -> None:
        """Wait until the ranks of a host follow a leader, or do not."""
        ranks = range(host * RANKS_PER_HOST, (host + 1) * RANKS_PER_HOST)
        self.group.until(
            lambda now: all(now[rank].connected is whether for rank in ranks),
            f"ranks of {NAMES[host]} are {'' if whether else 'not '}connected",
            RECOVERY_S,
        )

    def forwards_on(self, seconds: float) -> None:
        """Let the group serve for so long, by its own clock."""
        before = self.group.newest()
        self.group.until(
            lambda now: min(r.forward for r in now) >= before + seconds / PERIOD_S,
            f"{seconds} s of forwards",
            RECOVERY_S + 10 * seconds,
        )

    def story(self) -> str:
        """With the logs of all daemons."""
        tails = [f"--- {s.folder.name}\n{s.tail()}" for s in self.daemons[1:]]
        return "\n".join([super().story(), *tails])


def keygen(served: Served) -> None:
    """A new pair for a host, by the command that an operator gives."""
    shutil.rmtree(served.folder / "keys", ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "eplbd", "keygen", "--dir", served.folder / "keys"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
    )


def trust(served: Served, other: Served, name: str) -> None:
    """Copy another host's public key, as an operator would."""
    shutil.copy(other.folder / "keys" / "node.key", served.folder / "trust" / f"{name}.key")
