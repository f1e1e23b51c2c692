"""A real systemd that boots beside this machine's own, on an overlay of its root.

Needs root, cgroup2, overlayfs and util-linux, but no network and no image. Nothing that is written
in it reaches this machine; it ends with the test that booted it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("bash", "chroot", "mount", "nsenter", "pivot_root", "setpriv", "systemctl", "unshare")
SCRIPT = Path(__file__).with_name("boot.sh")
PATH = "PATH=/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_S = 60.0
PATIENCE_S = 180.0
"""For what may compile; only a failing test waits so long."""
COMMAND_S = 300.0


class CannotBootError(Exception):
    """Why there is no systemd to be had here."""


class Machine:
    """A booted systemd, by the process that is its process 1."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")
        """Its files, as seen from outside."""

    def run(self, *command: str, check: bool = True) -> str:
        """Output of a command in it, run as root; it has to succeed unless `check` is False."""
        enter = ("nsenter", "-t", str(self.pid), "--all", "--root", "--wd", "--")
        done = subprocess.run(
            [*enter, "env", "-i", PATH, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{command}: {done.returncode}\n{done.stdout}\n{self.journal()}")
        return done.stdout

    def as_user(self, user: str, *command: str) -> str:
        """Output of a command that a user of it runs, with the user's groups; it may fail."""
        who = ("--reuid", user, "--regid", user, "--init-groups")
        return self.run("setpriv", *who, *command, check=False)

    def until(self, happened: Callable[[], bool], what: str) -> None:
        """Wait until it happened; fail with `what` and the journal."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            if time.monotonic() > deadline:
                pytest.fail(f"did not happen: {what}\n{self.journal()}")
            time.sleep(0.1)

    def journal(self) -> str:
        """The last lines, for a test that fails."""
        return self.run("journalctl", "--no-pager", "--lines=60", check=False)


@contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """Boot one whose changes are kept in `folder`, an empty one.

    In it `/opt/python` is the Python that this environment was made from, without packages, and
    `/opt/site` the packages of this environment.

    Raises:
        CannotBootError: Not on this machine, and why.
    """
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() or lacking or not SYSTEMD.exists():
        raise CannotBootError(f"needs root, {SYSTEMD} and {', '.join(lacking) or 'no more tools'}")
    with _cgroup() as cgroup:
        command = (
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net"),
            *("--cgroup", "bash", str(SCRIPT), str(folder)),
            *(sys.base_prefix, sysconfig.get_path("purelib")),
        )
        enter = f'echo $$ > "{cgroup}/cgroup.procs"; exec "$@"'
        with subprocess.Popen(
            ["bash", "-c", enter, "bash", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as popen:
            try:
                yield Machine(_running(popen))
            finally:
                popen.kill()


@contextmanager
def _cgroup() -> Iterator[Path]:
    """A cgroup for the machine to be the root of."""
    mounted = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    where = [Path(row[1]) for row in mounted if row[2] == "cgroup2"]
    if not where:
        raise CannotBootError("no cgroup2 is mounted")
    cgroup = where[0] / f"eplbd-test-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        raise CannotBootError(f"no cgroup can be made: {error}") from error
    try:
        yield cgroup
    finally:
        _remove(cgroup)


def _remove(cgroup: Path) -> None:
    """Kill what is in a cgroup, and remove it with all below."""
    (cgroup / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + BOOT_S
    while "populated 1" in (cgroup / "cgroup.events").read_text("utf-8"):
        assert time.monotonic() < deadline, f"{cgroup} does not end"
        time.sleep(0.02)
    for folder, _, _ in os.walk(cgroup, topdown=False):
        Path(folder).rmdir()


def _running(popen: subprocess.Popen[str]) -> int:
    """Process id of the systemd, once it is up."""
    deadline = time.monotonic() + BOOT_S
    children = Path(f"/proc/{popen.pid}/task/{popen.pid}/children")
    said = "nothing"
    while time.monotonic() < deadline:
        if popen.poll() is not None:
            raise CannotBootError(f"the boot ended: {popen.communicate()[0]}")
        below = children.read_text("utf-8").split()
        if below and Path(f"/proc/{below[0]}/comm").read_text("utf-8").strip() == "systemd":
            said = Machine(int(below[0])).run("systemctl", "is-system-running", check=False)
            if said.strip() in ("running", "degraded"):
                return int(below[0])
        time.sleep(0.1)
    raise CannotBootError(f"systemd came as far as {said.strip()!r} in {BOOT_S:g} s")
