"""Shadows and modes as the operator has them: a real daemon, its files, its log and its signals."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from eplbd.core.messages import Standing
from eplbd.core.placement import Placement
from eplbd.core.plan import align
from eplbd.offline.formats import ascend
from eplbd.offline.formats.content import Context, Mapped
from eplbd.traces.placements import load_placement, save_placement
from eplbd.traces.recording import chunk_paths, load_chunks, load_meta
from tests.runtime.conftest import Connect, wait_until
from tests.runtime.process import GUESTS, Process, daemon, write_config
from tests.runtime.workers import PLACEMENT, Worker, drive, group, welcomed

pytestmark = pytest.mark.slow

QUICK: dict[str, object] = {
    "plugins__modules": [str(GUESTS / "tilt.py")],
    "balance__interval_s": 0.1,
    "balance__min_steps": 16,
    "balance__window_steps": 64,
    "balance__pause_s": 0.01,
}


def heat_until(workers: list[Worker], happened: Any, what: str) -> None:  # noqa: ANN401 - a test's
    """Send heat with every forward until it happened."""

    def told() -> bool:
        for worker in workers:
            if worker.agent.standing is Standing.IDLE:
                worker.say(worker.heat(1))
        return bool(happened())

    drive(workers, lambda: welcomed(workers), "both were welcomed")
    drive(workers, told, what)


def of(served: Process, event: str) -> list[dict[str, Any]]:
    return [line for line in served.lines if line["event"] == event]


def stopped(served: Process) -> None:
    served.popen.send_signal(signal.SIGTERM)
    assert served.wait() == 0


# --- shadows ------------------------------------------------------------------------------------


def test_a_shadow_is_scored_and_promoted_by_a_reload(tmp_path: Path, connect: Connect) -> None:
    keys = {**QUICK, "policy__name": "hold", "policy__shadow": ["tilt", "hold"]}
    with daemon(write_config(tmp_path, **keys)) as served:
        served.told("READY=1")
        workers = group(connect)

        def scored() -> bool:
            return {"tilt", "hold"} <= {
                line["policy"] for line in of(served, "shadow scored")[4:] if line["steps"] >= 16
            }

        heat_until(workers, scored, "both shadows were scored")
        lines = of(served, "shadow scored")
        tilt = [line for line in lines if line["policy"] == "tilt"]
        assert tilt[0]["outcome"] == "applied"
        assert sum(line["moves"] for line in tilt) == 2, "its moves build on each other"
        assert all(line["par_mean"] < line["active_par_mean"] for line in tilt)
        assert all(line["active_moves"] == 0 for line in lines)
        assert {worker.agent.placement for worker in workers} == {PLACEMENT}
        sessions = [len(worker.heard) for worker in workers]
        write_config(tmp_path, **{**keys, "policy__name": "tilt", "policy__shadow": ["hold"]})
        served.popen.send_signal(signal.SIGHUP)
        served.told("READY=1", 2)
        heat_until(workers, lambda: workers[0].agent.epoch == 1, "the promoted policy moved")
        ended = served.line("epoch ended")
        assert (ended["policy"], ended["term"], ended["moves"]) == ("tilt", 1, 2)
        assert len(of(served, "group gathered")) == 1
        assert sessions < [len(worker.heard) for worker in workers]
        mark = len(of(served, "shadow scored"))
        heat_until(
            workers, lambda: len(of(served, "shadow scored")) > mark, "the other is still watched"
        )
        last = served.line("shadow scored")
        assert last["policy"] == "hold"
        assert last["outcome"] == "rested" or last["moves"] == 0
        stopped(served)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"policy__shadow": ["hodl"]}, "unknown policy `hodl`; did you mean `hold`?"),
        ({"balance__mode": "static"}, "needs balance.map"),
        ({"balance__map": "x.npz"}, "is for balance.mode = static"),
        ({"balance__mode": "static", "balance__map": "/nowhere.npz"}, "/nowhere.npz: does not"),
        ({"balance__mode": "static", "balance__map": "/nowhere.json"}, "/nowhere.json"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(
    tmp_path: Path, keys: dict[str, object], words: str
) -> None:
    with daemon(write_config(tmp_path, **keys)) as served:
        assert served.wait() != 0
        wait_until(lambda: words in served.story(), f"{words} in {served.story()}")
        assert "Traceback" not in served.story()


# --- record, then static ------------------------------------------------------------------------


def recorded(tmp_path: Path, connect: Connect) -> Path:
    """Record for a while; the group's folder."""
    keys = {
        **QUICK,
        "policy__name": "tilt",
        "balance__mode": "record",
        "record__dir": str(tmp_path / "traces"),
    }
    with daemon(write_config(tmp_path, **keys)) as served:
        served.told("READY=1")
        workers = group(connect)
        heat_until(
            workers,
            lambda: (
                of(served, "cycle ended") and workers[0].forward > 300 and of(served, "recording")
            ),
            "a proposal was recorded",
        )
        assert {line["outcome"] for line in of(served, "cycle ended")} == {"recorded"}
        assert len(of(served, "cycle ended")) == 1, "the load was the same all the time"
        assert {worker.agent.placement for worker in workers} == {PLACEMENT}
        stopped(served)
        assert not of(served, "not recorded")
    (folder,) = (tmp_path / "traces").iterdir()
    return folder


def test_what_is_recorded_is_what_was_in_force_and_what_was_proposed(
    tmp_path: Path, connect: Connect
) -> None:
    folder = recorded(tmp_path, connect)
    (life,) = (path.parent for path in folder.glob("*/meta.json"))
    chunks = [*load_chunks(life, load_meta(life))]
    assert sum(map(len, chunks)) > 200
    for chunk in chunks:
        assert chunk.placements == {0: PLACEMENT}
        assert set(chunk.epoch.tolist()) == {0}
        assert chunk.counts.any(axis=2).all()
        assert (chunk.tokens == 200).all(), "a hundred of each rank"
    assert load_placement(folder / "in-force.npz") == PLACEMENT
    proposed = load_placement(folder / "proposed.npz")
    assert proposed != PLACEMENT
    assert (folder / "proposed.json").is_file()


@pytest.mark.parametrize("form", ["npz", "json"])
def test_a_recorded_map_is_applied_once_and_held(
    tmp_path: Path, connect: Connect, form: str
) -> None:
    slots = PLACEMENT.slots.copy()
    slots[:, 1] = (3, 2, 0)
    wanted = Placement(slots, 4)
    if form == "npz":
        save_placement(tmp_path / "map.npz", wanted)
    else:
        ascend.write(tmp_path / "map.json", Mapped(wanted, (0, 1)), Context())
    keys = {
        **QUICK,
        "policy__name": "tilt",
        "balance__mode": "static",
        "balance__map": str(tmp_path / f"map.{form}"),
    }
    config = write_config(tmp_path, **keys)
    workers = group(connect)
    for life in (1, 2):
        with daemon(config) as served:
            # No heat at all: the map is not a question of load.
            drive(workers, lambda: "static placement stands" in served.events(), "it stands")
            stands = served.line("static placement stands")
            assert stands["epoch"] == workers[0].agent.epoch == 1
            if life == 1:
                served.line("epoch ended")  # may be a line behind
            assert len(of(served, "epoch ended")) == (1 if life == 1 else 0), "no move twice"
            held = workers[0].agent.placement
            assert align(held, wanted) == held == workers[1].agent.placement
            served.popen.kill()


def test_a_map_of_another_shape_is_refused_and_serving_goes_on(
    tmp_path: Path, connect: Connect
) -> None:
    save_placement(tmp_path / "map.npz", Placement.linear(3, 4, 2, 3))
    keys = {**QUICK, "balance__mode": "static", "balance__map": str(tmp_path / "map.npz")}
    with daemon(write_config(tmp_path, **keys)) as served:
        workers = group(connect)
        drive(workers, lambda: "static placement refused" in served.events(), "it is refused")
        reason = served.line("static placement refused")["reason"]
        assert "layer 2: the map has shape [3, 2, 3], expected [2, 2, 3]" in reason
        drive(workers, lambda: welcomed(workers), "both are welcome")


def test_a_disk_that_refuses_the_record_costs_nothing_else(
    tmp_path: Path, connect: Connect
) -> None:
    keys = {
        **QUICK,
        "policy__name": "tilt",
        "record__enabled": True,
        "record__dir": str(tmp_path / "traces"),
    }
    with daemon(write_config(tmp_path, **keys)) as served:
        served.told("READY=1")
        resource.prlimit(served.popen.pid, resource.RLIMIT_FSIZE, (64, 64))
        workers = group(connect)
        heat_until(workers, lambda: workers[0].agent.epoch == 1, "epoch 1 settled")
        assert "File too large" in served.line("not recorded")["reason"]
        heat_until(workers, lambda: workers[0].forward > 600, "two chunks more")
        assert len(of(served, "not recorded")) == 1
        stopped(served)
    assert not [*(tmp_path / "traces").glob("**/chunk*")]


def test_recording_beside_dynamic_follows_the_map(tmp_path: Path, connect: Connect) -> None:
    keys = {
        **QUICK,
        "policy__name": "tilt",
        "record__enabled": True,
        "record__dir": str(tmp_path / "traces"),
    }
    with daemon(write_config(tmp_path, **keys)) as served:
        workers = group(connect)
        heat_until(workers, lambda: workers[0].agent.epoch == 1, "epoch 1 settled")
        mark = workers[0].forward
        heat_until(workers, lambda: workers[0].forward > mark + 50, "steps under the new map")
        stopped(served)
    (life,) = (path.parent for path in (tmp_path / "traces").glob("*/*/meta.json"))
    assert chunk_paths(life)
    placed = {
        epoch: placement
        for chunk in load_chunks(life, load_meta(life))
        for epoch, placement in chunk.placements.items()
    }
    assert placed == {0: PLACEMENT, 1: workers[0].agent.placement}
    assert load_placement(life.parent / "in-force.npz") == workers[0].agent.placement
