"""Every order at a live group: its effect, its refusal, and its line in the record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eplbd.core.placement import Placement
from eplbd.core.plan import align
from eplbd.traces.archive import load_trace
from eplbd.traces.placements import save_placement
from tests.ctl.live import INITIAL, Live, hosts, live
from tests.runtime.conftest import wait_until
from tests.runtime.process import daemon

pytestmark = pytest.mark.slow

SPARSE = Placement(np.array([[[0, 1, 2], [3, 2, 1], [3, 2, 1]]] * 2, dtype=np.int32), 4)
"""Expert 0 is on rank 0 alone."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One group for all tests here; each leaves it free to move."""
    with live(tmp_path_factory.mktemp("live")) as made:
        yield made


@pytest.fixture
def at(running: Live) -> Iterator[Live]:
    """The group, before and after a test with nothing ordered."""
    yield running
    orders = running.orders()
    for pin in {pin.expert for pin in orders.pins}:
        running.done("unpin", str(pin))
    for rank in orders.drained:
        running.done("undrain", str(rank))
    if running.orders().hold:
        running.done("resume")
    assert running.process.popen.poll() is None, running.process.story()


def rebalance(at: Live) -> None:
    """Give the policy a reason until an epoch has settled."""
    group = at.group()
    for expert in (0, 1, 2, 3, 0, 1, 2, 3):
        at.engine.heat(expert)
        at.later(100)
        if at.group().epoch > group.epoch:
            return
    raise AssertionError(f"nothing settled: {at.process.story()[-3000:]}")


# --- looking ------------------------------------------------------------------------------------


def test_status_is_one_json_object_or_a_page(at: Live) -> None:
    group = at.group()
    assert [rank.state for rank in group.ranks] == ["attached"] * 3
    at.done("pin", "3", "--layer", "1")
    page = at.ctl("status").output
    assert f"group default: {group.phase}" in page
    assert "3 of 3 attached" in page
    assert "expert 3 in layer 1" in page
    assert max(map(len, page.splitlines())) <= 100


def test_heat_becomes_a_trace(at: Live) -> None:
    at.engine.heat(2)
    at.later(60)
    path = at.folder / "heat.npz"
    assert "steps of 2 layers and 4 experts" in at.done("heat", "dump", str(path))
    trace = load_trace(path)
    assert trace.heat.shape[1:] == (2, 4)
    assert trace.heat[-1].argmax(axis=1).tolist() == [2, 2]
    assert trace.meta["rows"] == "steps"
    assert "cannot be written" in at.refused("heat", "dump", str(at.folder / "no" / "x.npz"))


# --- hold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["pause", "freeze"])
def test_a_hold_holds_and_resume_ends_it(at: Live, verb: str) -> None:
    rebalance(at)
    at.done(verb)
    at.until(lambda: at.group().epoch_now is None, "no epoch is under way")
    held = at.group()
    for expert in (0, 1, 2, 3):
        at.engine.heat(expert)
        at.later(60)
    assert at.group().epoch == held.epoch
    assert "a test" in at.group().paused
    assert "resume lifts that" in at.refused(verb)
    assert "resume" in at.refused("force")
    at.done("resume")
    rebalance(at)
    assert "nothing is paused" in at.refused("resume")
    assert [line["result"] for line in at.lines(verb)].count("done") >= 1


def test_every_order_is_one_line_with_who_and_why(at: Live) -> None:
    mark = len(at.lines("pause"))
    at.done("pause")
    at.refused("pause")
    wait_until(lambda: len(at.lines("pause")) == mark + 2, "both are recorded")
    done, refused = at.lines("pause")[mark:]
    assert (done["result"], done["why"], done["level"]) == ("done", "a test", "info")
    assert "uid" in str(done["who"])
    assert (refused["result"], refused["level"]) == ("refused", "warning")
    assert "paused by" in str(refused["detail"])


# --- moves --------------------------------------------------------------------------------------


def test_force_needs_no_gain(at: Live) -> None:
    at.done("budget", "--max-moves", "0")
    at.done("pause")
    at.engine.heat(1)
    at.later(60)
    at.done("resume")
    mark = len(at.process.lines)
    assert "is asked" in at.done("force")

    def asked() -> bool:
        lines = at.process.lines[mark:]
        return any(line["event"] == "cycle ended" and line["policy"] == "tilt" for line in lines)

    at.until(asked, "the policy answered")


def test_a_saved_placement_is_gone_back_to(at: Live) -> None:
    rebalance(at)
    at.done("pause")
    at.until(lambda: at.group().epoch_now is None, "no epoch is under way")
    saved = at.engine.placement()
    assert "kept as monday" in at.done("save", "monday")
    at.done("resume")
    file = at.folder / "sparse.npz"
    save_placement(file, SPARSE)
    at.settles(lambda: at.done("load", str(file)))
    assert align(SPARSE, at.engine.placement()) == SPARSE
    assert "it went to sparse.npz by order: a test" in at.group().paused
    at.settles(lambda: at.done("rollback", "monday"))
    assert align(saved, at.engine.placement()) == saved
    at.settles(lambda: at.done("rollback"))
    assert align(SPARSE, at.engine.placement()) == SPARSE, "before the last rebalance"
    at.settles(lambda: at.done("load", "monday"))
    assert align(saved, at.engine.placement()) == saved


def test_a_placement_that_cannot_be_is_refused(at: Live) -> None:
    wrong = at.folder / "wrong.npz"
    save_placement(wrong, Placement.linear(3, 4, 3, 3))
    assert "layer 2: the map has shape [3, 3, 3]" in at.refused("load", str(wrong))
    assert "no placement of group default is saved as 'tuesday'" in at.refused("load", "tuesday")
    assert "does not exist" in at.refused("load", "/nowhere/x.npz")
    assert "expected 1 to 64 letters" in at.refused("save", "../up")
    assert "the daemon itself" in at.refused("save", "previous")
    assert "no group 'other'" in at.refused("rollback", "--group", "other")


# --- pins and drains ----------------------------------------------------------------------------


def test_a_pinned_expert_stays_where_it_is(at: Live) -> None:
    at.settles(lambda: at.done("load", str(_file(at, "initial", INITIAL))))
    at.done("pin", "2")
    at.done("resume")
    before = [hosts(at.engine.placement(), layer, 2) for layer in (0, 1)]
    at.engine.heat(2)
    at.later(200)
    assert [hosts(at.engine.placement(), layer, 2) for layer in (0, 1)] == before
    sparse = str(_file(at, "sparse", SPARSE))
    assert "moves expert 2, which is pinned" in at.refused("load", sparse)
    assert "expert is 9, expected 0 to 3" in at.refused("pin", "9")
    assert "is not pinned" in at.refused("unpin", "0")
    at.settles(lambda: at.done("unpin", "2"))
    assert [hosts(at.engine.placement(), layer, 2) for layer in (0, 1)] != before


def test_a_drained_rank_can_be_spared(at: Live) -> None:
    at.settles(lambda: at.done("load", str(_file(at, "sparse", SPARSE))))
    assert hosts(at.engine.placement(), 0, 0) == [0]
    at.settles(lambda: at.done("drain", "0"))
    spared = at.engine.placement().hosts()[:, 1:].any(axis=1)
    assert spared.all(), "every expert is on rank 1 or 2"
    at.done("resume")
    rebalance(at)
    assert at.engine.placement().hosts()[:, 1:].any(axis=1).all()
    assert "leaves expert 0 on no rank" in at.refused("load", str(_file(at, "sparse", SPARSE)))
    assert "drained already" in at.refused("drain", "0")
    assert "is not drained" in at.refused("undrain", "1")
    assert "slots for 4 experts" in at.refused("drain", "1")
    at.done("undrain", "0")
    assert at.orders().drained == ()


def _file(at: Live, name: str, placement: Placement) -> Path:
    path = at.folder / f"{name}.npz"
    save_placement(path, placement)
    return path


# --- settings -----------------------------------------------------------------------------------


def test_a_budget_is_changed_at_once(at: Live) -> None:
    told = at.done("budget", "--max-moves", "7", "--inflation-ceiling", "1.5")
    assert "balance.max_moves = 7, transfer.inflation_ceiling = 1.5" in told
    budget = at.group().budget
    assert (budget.max_moves, budget.inflation_ceiling) == (7, 1.5)
    refused = at.refused("budget", "--inflation-ceiling", "0.5")
    assert "eplbd ctl: transfer.inflation_ceiling: expected `float` > 1.0" in refused
    assert "a budget of what?" in at.refused("budget")
    at.done("budget", "--max-moves", "0")


def test_a_policy_is_promoted(at: Live) -> None:
    assert "policy.name = hold" in at.done("promote", "hold")
    assert at.status().snapshot.policy == "hold"
    assert "in charge already" in at.refused("promote", "hold")
    refused = at.refused("promote", "tlit")
    assert "eplbd ctl" in refused
    assert "did you mean" in refused
    assert at.status().snapshot.policy == "hold"
    at.done("promote", "tilt")
    rebalance(at)


# --- over restarts ------------------------------------------------------------------------------


def test_a_freeze_and_a_drain_outlive_the_daemon(tmp_path: Path) -> None:
    with live(tmp_path) as first:
        first.done("drain", "1")
        first.done("freeze")
        first.process.popen.terminate()
        assert first.process.wait() == 0
        with daemon(first.config) as second:
            second.told("READY=1")
            again = Live(tmp_path, first.config, first.engine, second)
            again.ready()
            epoch = again.group().epoch
            for expert in (0, 1, 2, 3):
                again.engine.heat(expert)
                again.later(60)
            assert again.group().epoch == epoch
            assert "frozen by" in again.group().paused
            assert again.orders().drained == (1,)
            again.done("resume")
            again.done("undrain", "1")
            second.popen.terminate()
            assert second.wait() == 0
        assert json.loads((tmp_path / "state" / "orders.json").read_text()) == {}


def test_orders_that_cannot_be_read_freeze_everything(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "orders.json").write_text("{")
    with live(tmp_path) as made:
        line = made.process.line("orders refused, all is frozen")
        assert "orders.json cannot be read" in line["reason"]
        assert "frozen by the daemon" in made.group().paused
        made.done("resume")
        rebalance(made)
