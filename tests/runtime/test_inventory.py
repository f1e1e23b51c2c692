"""`eplbd policies`: where each comes from, what it needs, what the daemon last had against it."""

from __future__ import annotations

from pathlib import Path

import pytest

from eplbd import config
from eplbd.core.events import RememberFault
from eplbd.runtime.faults import FILE, read_faults, write_faults
from eplbd.runtime.inventory import HEAD, inventory
from tests.runtime.conftest import Connect, wait_until
from tests.runtime.process import daemon, write_config
from tests.runtime.workers import PLACEMENT, drive, group, welcomed

pytestmark = pytest.mark.slow

GUESTS = Path(__file__).parents[1] / "plugins" / "guests"

MOODY = f"""
import eplbd

class Moody:
    name = "moody"
    eplbd_api = 1

    def propose(self, heat, topology, current, budget):
        if current.experts == {PLACEMENT.experts}:
            raise ValueError("not with you")
        return current

@eplbd.hookimpl
def eplbd_register_policies(register):
    register(Moody)
"""


def table(state_dir: Path, *modules: str, enabled: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Rows by plugin, each as its cells."""
    plugins = config.Plugins(enabled=enabled, modules=modules)
    given = config.Config(plugins=plugins, daemon=config.Daemon(state_dir=str(state_dir)))
    (head, *rows), missing = inventory(given)
    assert head == HEAD
    assert missing == ""
    return {row[1]: [*row] for row in rows}


def test_what_is_installed_where_it_is_from_and_what_is_wrong(tmp_path: Path) -> None:
    guests = [str(GUESTS / f"{name}.py") for name in ("weigher", "unimportable")]
    rows = table(tmp_path, *guests, enabled=("random",))
    assert rows["hold"][2] == "eplbd"
    assert rows["random"][2] == "eplbd-policies"
    assert rows["weigher"] == ["weigher", "weigher", "-", "-", "1", "shares", "-"]
    assert rows["unimportable"][0] == "-"
    assert rows["unimportable"][6].startswith("ModuleNotFoundError: No module named")


def test_the_last_error_is_shown_also_where_a_number_was_configured(tmp_path: Path) -> None:
    write_faults(tmp_path, {"0": RememberFault("0", "timeout", "no answer within 1 s")})
    assert table(tmp_path, enabled=("random",))["random"][6].endswith(
        "timeout: no answer within 1 s"
    )


def test_a_memory_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    given = config.Config(
        plugins=config.Plugins(enabled=()), daemon=config.Daemon(state_dir=str(tmp_path))
    )
    rows, missing = inventory(given)
    assert [row[0] for row in rows] == ["policy", "hold"]
    assert missing.startswith("what the daemon remembers cannot be read: ")


def test_the_daemon_remembers_a_policy_that_could_not_start(tmp_path: Path) -> None:
    guest = str(GUESTS / "unprepared.py")
    keys = {"policy__name": "unprepared", "plugins__modules": [guest]}
    with daemon(write_config(tmp_path, **keys)) as served:
        served.popen.wait(60.0)
        assert served.wait() == 1
    error = table(tmp_path / "state", guest)["unprepared"][6]
    assert "start: policy `unprepared` of unprepared" in error
    assert error.endswith("ValueError: not for such a small problem")


def test_the_daemon_remembers_what_a_policy_did_wrong(tmp_path: Path, connect: Connect) -> None:
    guest = tmp_path / "moody.py"
    guest.write_text(MOODY)
    keys = {
        "policy__name": "moody",
        "plugins__modules": [str(guest)],
        "balance__interval_s": 0.1,
        "balance__min_steps": 16,
        "balance__par_trigger": 1.0,
    }
    with daemon(write_config(tmp_path, **keys)) as served:
        workers = group(connect)
        drive(workers, lambda: welcomed(workers), "both were welcomed")

        def suspended() -> bool:
            for worker in workers:
                worker.say(worker.heat(1))
            return "policy suspended, hold takes over" in served.events()

        drive(workers, suspended, "three failures")
        state = tmp_path / "state"
        wait_until(lambda: any(f.faults >= 3 for f in read_faults(state).values()), "all are kept")
    error = table(tmp_path / "state", str(guest))["moody"][6]
    assert error.endswith("raised: ValueError: not with you")
