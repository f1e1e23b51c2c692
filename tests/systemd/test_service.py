"""The daemon under a real systemd, installed, run and removed as OPERATIONS.md says.

With `EPLBD_NIGHTLY=1` it starts as it comes, with its default policy, which compiles for minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq

from eplbd.runtime.keys import generate
from tests.runtime.workers import Worker, drive, group, welcomed
from tests.systemd.machine import CannotBootError, Machine, booted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[2]
OPERATIONS = REPOSITORY / "OPERATIONS.md"
GUESTS = Path(__file__).with_name("guests")
NIGHTLY = bool(os.environ.get("EPLBD_NIGHTLY"))
HOLD = "[policy]\nname = 'hold'\n"
OURS = ("", "policies")
"""Folders of what is installed."""


def steps(heading: str) -> list[str]:
    """The shell commands of a section of OPERATIONS.md's, one per line."""
    section = OPERATIONS.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return section.partition("```sh\n")[2].partition("```")[0].splitlines()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What the package index would have of ours."""
    out = tmp_path_factory.mktemp("wheels")
    for folder in OURS:
        _build(REPOSITORY / folder, out)
    return sorted(out.glob("*.whl"))


def _build(source: Path, out: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, wheels: list[Path]) -> Iterator[Machine]:
    """A systemd in which the install section was run, command by command."""
    try:
        with booted(tmp_path_factory.mktemp("machine")) as made:
            _install(made, wheels)
            yield made
    except CannotBootError as reason:
        pytest.skip(f"no systemd can be booted here: {reason}")


def _install(machine: Machine, wheels: list[Path]) -> None:
    _offer_index(machine, wheels)
    if not NIGHTLY:
        (machine.root / "etc/eplbd").mkdir()
        (machine.root / "etc/eplbd/eplbd.toml").write_text(HOLD)
    for step in steps("Install"):
        machine.run("sh", "-c", step)
        if "-m venv" in step:
            # There is no network: what ours need is this environment's.
            (site,) = (machine.root / "opt/eplbd/lib").glob("python*/site-packages")
            (site / "borrowed.pth").write_text("/opt/borrowed\n")


def _offer_index(machine: Machine, wheels: list[Path]) -> None:
    """All packages of this environment but ours, and ours as wheels."""
    index, borrowed = machine.root / "opt/index", machine.root / "opt/borrowed"
    index.mkdir()
    for wheel in wheels:
        (index / wheel.name).write_bytes(wheel.read_bytes())
    (machine.root / "etc/pip.conf").write_text("[install]\nno-index = 1\nfind-links = /opt/index\n")
    borrowed.mkdir()
    for entry in (machine.root / "opt/site").iterdir():
        if not entry.name.startswith(("eplbd", "_eplbd", "__editable__", "__pycache__")):
            (borrowed / entry.name).symlink_to(Path("/opt/site") / entry.name)


# --- what is looked at --------------------------------------------------------------------------


def shown(machine: Machine, *names: str) -> dict[str, str]:
    """Properties of the unit."""
    lines = machine.run("systemctl", "show", "eplbd", *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in lines.splitlines())


def logged(machine: Machine, event: str) -> list[dict[str, str]]:
    """Journal entries of an event, oldest first; the daemon's own line is their MESSAGE."""
    lines = machine.run("journalctl", "--unit=eplbd", "--output=json", "--no-pager").splitlines()
    entries: list[dict[str, str]] = [json.loads(line) for line in lines]
    wanted = f'"event":"{event}"'
    return [entry for entry in entries if wanted in str(entry.get("MESSAGE"))]


def compiled(machine: Machine) -> list[Path]:
    """What numba keeps of compiled policies."""
    return list((machine.root / "var/cache/eplbd/numba").rglob("*.nbi"))


def configure(machine: Machine, text: str, **unit: str) -> None:
    """Restart the daemon with this file, and these settings of its unit's beside the file's."""
    (machine.root / "etc/eplbd").mkdir(exist_ok=True)
    (machine.root / "etc/eplbd/eplbd.toml").write_text(text)
    drop_in = machine.root / "etc/systemd/system/eplbd.service.d/test.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("\n".join(["[Service]", *(f"{key}={word}" for key, word in unit.items())]))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", "eplbd")
    machine.run("systemctl", "restart", "eplbd")


# --- in the order of an operator's day ------------------------------------------------------------


def test_the_documented_steps_leave_a_daemon_that_serves(machine: Machine) -> None:
    assert shown(machine, "ActiveState", "NRestarts", "StatusText", "UnitFileState") == {
        "ActiveState": "active",
        "NRestarts": "0",
        "StatusText": "serving, no worker yet",
        "UnitFileState": "enabled",
    }
    assert bool(compiled(machine)) == NIGHTLY


def test_it_runs_as_nobody_else_and_gives_way(machine: Machine) -> None:
    pid = shown(machine, "MainPID")["MainPID"]
    assert machine.run("ps", "-o", "user=,group=,nice=", pid).split() == ["eplbd", "eplbd", "5"]
    places = ("/run/eplbd", "/run/eplbd/workers.sock", "/var/lib/eplbd")
    assert machine.run("stat", "--format=%a %U %G", *places).splitlines() == [
        "750 eplbd eplbd",
        "660 eplbd eplbd",
        "750 eplbd eplbd",
    ]


def test_the_journal_has_its_lines_with_their_priority(machine: Machine) -> None:
    (serving,) = logged(machine, "serving")
    assert serving["PRIORITY"] == "6"
    assert json.loads(serving["MESSAGE"])["socket"] == "ipc:///run/eplbd/workers.sock"


def test_who_is_in_the_group_may_connect_and_nobody_else(machine: Machine) -> None:
    program = "import socket; socket.socket(socket.AF_UNIX).connect('/run/eplbd/workers.sock')"
    for user in ("engine", "stranger"):
        machine.run("useradd", user)
    machine.run("usermod", "--append", "--groups", "eplbd", "engine")
    assert machine.as_user("engine", "python3", "-c", program) == ""
    assert "PermissionError" in machine.as_user("stranger", "python3", "-c", program)


@contextmanager
def joined(machine: Machine) -> Iterator[list[Worker]]:
    """A group of two workers that has attached, from outside."""
    endpoint = f"ipc://{machine.root}/run/eplbd/workers.sock"
    with zmq.Context() as context, ExitStack() as sockets:

        def connected(identity: bytes) -> zmq.Socket[bytes]:
            made = sockets.enter_context(context.socket(zmq.DEALER))
            made.setsockopt(zmq.LINGER, 0)
            made.setsockopt(zmq.IDENTITY, identity)
            made.connect(endpoint)
            return made

        workers = group(connected)
        drive(workers, lambda: welcomed(workers), "both were welcomed")
        yield workers


def test_a_group_of_workers_attaches(machine: Machine) -> None:
    configure(machine, HOLD)
    with joined(machine) as workers:
        drive(workers, lambda: bool(logged(machine, "group ready")), "the group is ready")


def test_the_daemon_is_upgraded_beside_workers_of_the_old_release(
    machine: Machine, tmp_path: Path
) -> None:
    configure(machine, HOLD)
    with joined(machine) as workers:
        term = workers[0].agent.term
        _publish(machine, "0.1.99", tmp_path)
        for step in steps("Upgrade, one side at a time"):
            machine.run("sh", "-c", step)
        assert "0.1.99" in machine.run("eplbd", "--version")
        drive(workers, lambda: all(w.agent.term > term for w in workers), "a new term began")
        drive(workers, lambda: welcomed(workers), "both were welcomed again")


def _publish(machine: Machine, version: str, folder: Path) -> None:
    """A further release of ours in the index, the same but for its number."""
    for name in OURS:
        source = folder / (name or "root")
        ignored = shutil.ignore_patterns(".*", "tests", "plugins", "__pycache__")
        shutil.copytree(REPOSITORY / name, source, ignore=ignored)
        file = source / "pyproject.toml"
        file.write_text(
            re.sub(r'(?m)^version = "[^"]+"', f'version = "{version}"', file.read_text())
        )
        _build(source, folder / "dist")
    for wheel in (folder / "dist").iterdir():
        (machine.root / "opt/index" / wheel.name).write_bytes(wheel.read_bytes())


def test_prometheus_is_answered_on_the_loopback(machine: Machine) -> None:
    configure(machine, HOLD)
    program = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9476/metrics").read().decode())
"""
    figures = machine.run("python3", "-c", program)
    assert re.search(r"(?m)^eplbd_build_info\{.*\} 1\.0$", figures)
    # An alert counts restarts by it, and the daemon sees little of /proc.
    assert re.search(r"(?m)^process_start_time_seconds \d", figures)


def test_root_gives_orders_and_the_group_does_not(machine: Machine) -> None:
    configure(machine, HOLD)
    refused = machine.as_user("engine", "eplbd", "ctl", "freeze")
    assert "Error" in refused
    assert "control" in refused
    machine.run("eplbd", "ctl", "freeze", "--why", "a test")
    machine.run("systemctl", "restart", "eplbd")
    status = json.loads(machine.run("eplbd", "ctl", "status", "--json"))
    assert "frozen" in json.dumps(status)
    machine.run("eplbd", "ctl", "resume")


def test_a_reload_is_a_reload_and_a_bad_one_changes_nothing(machine: Machine) -> None:
    configure(machine, HOLD)
    file = machine.root / "etc/eplbd/eplbd.toml"
    before = shown(machine, "MainPID", "NRestarts")
    file.write_text("[policy]\nname = 'hold'\n[balance]\ninterval_s = 7.0\n")
    machine.run("systemctl", "reload", "eplbd")
    machine.until(lambda: bool(logged(machine, "configuration reloaded")), "it reloaded")
    file.write_text("[balance]\nintervall_s = 7.0\n")
    machine.run("systemctl", "reload", "eplbd")
    machine.until(lambda: bool(logged(machine, "configuration not reloaded")), "it refused")
    (refused,) = logged(machine, "configuration not reloaded")
    assert refused["PRIORITY"] == "3"
    assert "eplbd.toml:2" in refused["MESSAGE"]
    machine.until(
        lambda: shown(machine, "ActiveState") == {"ActiveState": "active"}, "it is active again"
    )
    assert shown(machine, "MainPID", "NRestarts") == before


def test_a_shadow_gives_way_under_the_units_filter_of_calls(machine: Machine) -> None:
    configure(machine, "[policy]\nname = 'hold'\nshadow = ['random']\n")
    nice = machine.run("ps", "-u", "eplbd", "-o", "nice=").split()
    assert sorted(map(int, nice)) == [5, 5, 15], "the daemon, the policy, the shadow"
    assert not logged(machine, "shadow cannot start")


def test_systemd_waits_for_a_policy_that_compiles(machine: Machine) -> None:
    """Longer than the unit's timeout, and under its hardening; the result is kept."""
    before = compiled(machine)
    guest = machine.root / "etc/eplbd/compiled.py"
    guest.write_text((GUESTS / "compiled.py").read_text())
    configure(
        machine,
        "[policy]\nname = 'compiled'\n[plugins]\nmodules = ['/etc/eplbd/compiled.py']\n",
        TimeoutStartSec="12s",
    )
    assert shown(machine, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    assert len(compiled(machine)) > len(before)


def test_a_wedged_daemon_is_restarted_by_the_watchdog(machine: Machine) -> None:
    configure(machine, HOLD, WatchdogSec="2s")
    pid = shown(machine, "MainPID")["MainPID"]
    machine.run("kill", "-STOP", pid)
    machine.until(lambda: shown(machine, "NRestarts")["NRestarts"] == "1", "systemd restarted it")
    machine.until(lambda: shown(machine, "ActiveState")["ActiveState"] == "active", "it serves")
    assert "watchdog" in machine.journal().lower()
    assert machine.run("pgrep", "-c", "-x", "-u", "eplbd", "eplbd").strip() == "1"


def test_a_killed_daemon_comes_back_at_the_same_place(machine: Machine) -> None:
    """A container that mounted the directory sees the new socket: it is the same directory."""
    configure(machine, HOLD)
    directory = machine.run("stat", "--format=%i", "/run/eplbd")
    machine.run("kill", "-KILL", shown(machine, "MainPID")["MainPID"])
    machine.until(lambda: shown(machine, "NRestarts")["NRestarts"] == "1", "systemd restarted it")
    machine.until(lambda: shown(machine, "ActiveState")["ActiveState"] == "active", "it serves")
    assert machine.run("stat", "--format=%i", "/run/eplbd") == directory


def test_among_other_nodes_its_key_is_its_own(machine: Machine, tmp_path: Path) -> None:
    """As OPERATIONS.md says; what systemd hands over, the group of the workers cannot read."""
    for step in steps("Several nodes"):
        machine.run("sh", "-c", step)
    generate(tmp_path)
    (machine.root / "etc/eplbd/trust/other.key").write_bytes((tmp_path / "node.key").read_bytes())
    configure(machine, f"{HOLD}[cluster]\nlisten = 'tcp://127.0.0.1:9477'\n")
    assert shown(machine, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    serving = json.loads(logged(machine, "serving")[-1]["MESSAGE"])
    assert serving["cluster"] == "tcp://127.0.0.1:9477"
    secrets = ("/etc/eplbd/keys", "/run/credentials/eplbd.service")
    for place in secrets:
        assert "secret-key" in machine.run("cat", f"{place}/node.key_secret")
        said = machine.as_user("engine", "cat", f"{place}/node.key_secret")
        assert "Permission denied" in said
    (machine.root / "etc/eplbd/trust/other.key").unlink()
    machine.run("systemctl", "reload", "eplbd")
    machine.until(lambda: bool(logged(machine, "trust reloaded")), "the key was withdrawn")
    (machine.root / "etc/systemd/system/eplbd.service.d/eplbd.conf").unlink()


def test_a_stop_is_quick_and_clean(machine: Machine) -> None:
    configure(machine, HOLD)
    started = time.monotonic()
    machine.run("systemctl", "stop", "eplbd")
    assert time.monotonic() - started < 15.0, "TimeoutStopSec, after which it would be killed"
    ended = shown(machine, "ActiveState", "Result")
    assert ended == {"ActiveState": "inactive", "Result": "success"}
    assert machine.run("pgrep", "-u", "eplbd", check=False) == ""


def test_the_documented_steps_remove_everything(machine: Machine) -> None:
    configure(machine, HOLD)
    for step in steps("Uninstall"):
        machine.run("sh", "-c", step)
    places = ("etc", "opt", "run", "usr/local/bin", "var/cache", "var/lib")
    left = [place for place in places if (machine.root / place / "eplbd").exists()]
    assert not left
    assert "eplbd" not in machine.run("ps", "-e", "-o", "args=")
    assert "could not be found" in machine.run("systemctl", "status", "eplbd", check=False)
    assert "eplbd" not in (machine.root / "etc/passwd").read_text()
