"""What `eplbd share` prints for an operator: complete, and held to systemd's own judgement."""

from __future__ import annotations

import grp
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eplbd.cli import main
from eplbd.share.printed import FOLDER, PRINTED, doubts, printed

EXPOSURE_MAX = 20
"""Tenths of systemd's scale, on which a bare unit has 96."""

COMMAND = Path(sys.executable).with_name("eplbd")


def share(name: str) -> Result:
    return CliRunner().invoke(main, ["share", name])


def keys(text: str) -> dict[str, list[str]]:
    """Values by key of a unit file, in their order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"(?m)^(\w+)=(.*)$", text):
        found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as a file."""
    file = tmp_path / "eplbd.service"
    file.write_text(printed("unit"))
    return file


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd's judge of unit files, which needs no systemd that runs."""
    judge = shutil.which("systemd-analyze")
    if judge is None:
        pytest.skip("no systemd-analyze on this machine")
    return subprocess.run([judge, *words], capture_output=True, text=True, check=False)


def test_the_unit_starts_the_eplbd_that_printed_it() -> None:
    done = share("unit")
    assert done.exit_code == 0, done.output
    assert keys(done.stdout)["ExecStart"] == [f"{COMMAND} serve"]
    assert keys(done.stdout)["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


@pytest.mark.parametrize("name", ["sysusers", "engine"])
def test_what_depends_on_nothing_is_printed_as_it_is(name: str) -> None:
    assert share(name).output == (FOLDER / PRINTED[name][0]).read_text("utf-8")


def test_everything_that_is_offered_has_its_file() -> None:
    missing = [file for file, _ in PRINTED.values() if not (FOLDER / file).is_file()]
    assert not missing


def test_a_container_is_given_the_number_of_the_group() -> None:
    done = share("container")
    try:
        number = grp.getgrnam("eplbd").gr_gid
    except KeyError:
        assert done.exit_code == 1
        assert "eplbd share sysusers" in done.output
    else:
        assert keys(done.output)["PodmanArgs"] == [f"--group-add={number}"]


@pytest.mark.parametrize("place", ["/home/ann/.local/bin/eplbd", "/root/.pyenv", "/tmp/venv"])  # noqa: S108
def test_an_installation_that_the_unit_would_hide_is_named(place: str) -> None:
    (doubt,) = doubts("unit", [Path(place), Path("/opt/eplbd/bin/eplbd"), Path("/usr")])
    assert place in doubt
    assert "/opt/eplbd" in doubt


def test_the_unit_is_one(unit: Path) -> None:
    done = analyze("verify", "--man=no", unit)
    ours = [line for line in done.stderr.splitlines() if "eplbd" in line]
    assert done.returncode == 0, done.stderr
    assert not ours


def test_the_unit_exposes_little(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_judge_would_see_a_unit_that_exposes_much(unit: Path) -> None:
    bare = [line for line in unit.read_text().splitlines() if not re.match("Protect|Private", line)]
    unit.write_text("\n".join(bare))
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit)
    assert done.returncode != 0


def test_the_unit_lets_policies_be_compiled() -> None:
    said = keys(printed("unit"))
    assert "MemoryDenyWriteExecute" not in said
    assert said["CacheDirectory"] == ["eplbd"]


def test_the_directories_are_those_of_the_default_configuration() -> None:
    from eplbd.config import Daemon

    said = keys(printed("unit"))
    assert Daemon().socket == f"ipc:///run/{said['RuntimeDirectory'][0]}/workers.sock"
    assert Daemon().state_dir == f"/var/lib/{said['StateDirectory'][0]}"
