"""Hosts made of namespaces: a network, a host name and a view of /etc/hosts each, nothing else.

Two networks join them, as in a machine room. The engine's (`eth0`, 10.77.0.N) is a kernel bridge;
the daemons' (`eth1`, 10.78.0.N) is a `Wire`, with delay and loss. Owns the namespaces, for as long
as their anchors live: processes that do nothing. Must not know what runs on a host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.wire import Wire, open_tap

ENGINE, CLUSTER = "eth0", "eth1"
ANCHOR = """
import ctypes, signal, socket, subprocess, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
_, name, folder = sys.argv
socket.sethostname(name)
for file in ("hosts", "resolv.conf"):
    subprocess.run(["mount", "--bind", f"{folder}/{file}", f"/etc/{file}"], check=True)
print("ready", flush=True)
sys.stdin.read()
"""
"""Lives until its standard input ends, or whoever started it dies (PR_SET_PDEATHSIG)."""
NAMESPACES = ("--net", "--uts", "--mount")


@dataclass(frozen=True)
class Host:
    """One host. index: 1, 2, ...; anchor: a process in its namespaces."""

    name: str
    index: int
    anchor: int

    @property
    def engine(self) -> str:
        """Address in the engine's network."""
        return f"10.77.0.{self.index}"

    @property
    def cluster(self) -> str:
        """Address in the daemons' network."""
        return f"10.78.0.{self.index}"

    @property
    def prefix(self) -> tuple[str, ...]:
        """What makes a command run here."""
        return ("nsenter", f"--target={self.anchor}", *NAMESPACES, "--")

    def run(self, *command: str) -> str:
        """Run a command here; what it says."""
        return _run(*self.prefix, *command)

    def within(self, do: Callable[[], int]) -> int:
        """Call a function in this network; on a thread of its own, whose network that stays."""
        found: list[int] = []

        def enter() -> None:
            with Path(f"/proc/{self.anchor}/ns/net").open("rb") as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0):
                    return
            found.append(do())

        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        thread.join()
        assert found, f"cannot enter the network of {self.name}"
        return found[0]


@dataclass(frozen=True)
class Room:
    """Hosts, the bridge between them and the wire."""

    hosts: tuple[Host, ...]
    switch: Host
    wire: Wire

    def unplug(self, host: Host) -> None:
        """Take the host off the engine's network; it does not notice but by the silence."""
        self.switch.run("ip", "link", "set", f"{host.name}0", "nomaster")

    def plug(self, host: Host) -> None:
        """Put it back."""
        self.switch.run("ip", "link", "set", f"{host.name}0", "master", "bridge0")


def why_not() -> str:
    """Why there can be no such hosts here; empty if there can."""
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}` here"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened"
    bridge = "ip link add name br0 type bridge && ip link add name v0 type veth peer name v1"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "sh", "-c", bridge], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else f"no namespaces: {tried.stderr.decode().strip()}"


@contextlib.contextmanager
def open_room(names: Sequence[str], *, delay_s: float, loss: float) -> Iterator[Room]:
    """Hosts of these names, of at most ten letters, joined by both networks; gone at the end.

    delay_s, loss: of the daemons' network, one way.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _write_names(folder, names)
        switch = stack.enter_context(_anchored("switch", 0, folder))
        switch.run("ip", "link", "add", "bridge0", "type", "bridge")
        switch.run("ip", "link", "set", "bridge0", "up")
        hosts = [
            stack.enter_context(_anchored(name, index, folder))
            for index, name in enumerate(names, start=1)
        ]
        for host in hosts:
            _join(host, switch)
        ends = {host.name: host.within(lambda: open_tap(CLUSTER)) for host in hosts}
        for host in hosts:
            host.run("ip", "address", "add", f"{host.cluster}/24", "dev", CLUSTER)
            host.run("ip", "link", "set", CLUSTER, "up")
        wire = stack.enter_context(Wire(ends, delay_s=delay_s, loss=loss))
        yield Room(tuple(hosts), switch, wire)


def _write_names(folder: Path, names: Sequence[str]) -> None:
    """Who is called what; nobody is asked beyond that, since nobody would answer."""
    lines = ["127.0.0.1 localhost"]
    for index, name in enumerate(names, start=1):
        lines += [f"10.78.0.{index} {name}", f"10.77.0.{index} {name}-{ENGINE}"]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "resolv.conf").write_text("")


def _join(host: Host, switch: Host) -> None:
    """A cable from the host's `eth0` to the bridge."""
    port = f"{host.name}0"
    peer = ("peer", "name", port, "netns", str(switch.anchor))
    host.run("ip", "link", "add", ENGINE, "type", "veth", *peer)
    switch.run("ip", "link", "set", port, "master", "bridge0")
    switch.run("ip", "link", "set", port, "up")
    host.run("ip", "link", "set", "lo", "up")
    host.run("ip", "address", "add", f"{host.engine}/24", "dev", ENGINE)
    host.run("ip", "link", "set", ENGINE, "up")


@contextlib.contextmanager
def _anchored(name: str, index: int, folder: Path) -> Iterator[Host]:
    anchor = subprocess.Popen(
        ["unshare", *NAMESPACES, sys.executable, "-c", ANCHOR, name, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert anchor.stdout is not None
    assert anchor.stdin is not None
    try:
        assert anchor.stdout.readline() == b"ready\n"
        yield Host(name, index, anchor.pid)
    finally:
        anchor.kill()
        anchor.wait()
        anchor.stdin.close()
        anchor.stdout.close()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
