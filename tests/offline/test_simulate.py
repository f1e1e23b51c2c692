"""Simulating: figures against an independent computation, failures as sentences, the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplbd.cli import main
from eplbd.config import Policy
from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError
from eplbd.offline import layouts
from eplbd.offline.guests import Guest, invite
from eplbd.offline.links import Bandwidth, transfer
from eplbd.offline.simulate import baseline, simulate
from eplbd.offline.windows import cut, load
from eplbd.traces.archive import HeatTrace, save_trace
from eplbd.traces.placements import save_placement
from eplbd.traces.recording import TraceMeta
from eplbd.traces.writer import recording
from tests.offline.makings import placements, skewed

GROUP = Topology(4, 3, (0, 0, 1, 1))
FREE = Budget(None, None, 10.0, 1000)
LINEAR = Placement.linear(2, 8, 4, 3)


def by_hand(placement: Placement, steps: NDArray[np.int32]) -> list[list[tuple[float, float]]]:
    """Hottest and mean load of each step and layer, one slot after the other."""
    found = []
    for step in steps.tolist():
        layers = []
        for layer, ranks in enumerate(placement.slots.tolist()):
            every = [expert for rank in ranks for expert in rank]
            load = [sum(step[layer][e] / every.count(e) for e in rank) for rank in ranks]
            layers.append((max(load), sum(load) / len(load)))
        found.append(layers)
    return found


@given(placement=placements(duplicates=True), seed=st.integers(0, 99), empty=st.booleans())
def test_figures_agree_with_a_computation_by_hand(
    placement: Placement, seed: int, empty: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 4, placement.layers, placement.experts)
    heat = rng.integers(0, 50, shape, dtype=np.int32)
    heat[1, 2] = 0  # an idle step
    if empty:
        heat[:, :, 0] = 0  # a layer that never ran
    group = Topology.single_node(placement.ranks, placement.slots_per_rank)
    row = baseline([*heat], group, placement, FREE).row()
    loads = [by_hand(placement, window) for window in heat[1:]]
    pars = [hot / mean for window in loads for step in window for hot, mean in step if mean]
    assert row["par_mean"] == pytest.approx(np.mean(pars) if pars else 1, abs=1e-4)
    assert row["par_p99"] == pytest.approx(np.percentile(pars, 99) if pars else 1, abs=1e-4)
    paid = []
    for window in loads:
        for layer in range(placement.layers):
            hot, mean = (sum(step[layer][i] for step in window) for i in (0, 1))
            paid.append(hot / mean if mean else 1.0)
    assert row["par_paid"] == pytest.approx(np.mean(paid), abs=1e-4)
    assert (row["moves"], row["bytes"], row["failures"]) == (0, 0, [])
    assert row["judged_windows"] == 2


class Turner:
    """Proposes every rank's neighbour; remembers what it was shown."""

    name = "turner"
    eplbd_api = 1

    def __init__(self) -> None:
        self.seen: list[tuple[Heat, Placement]] = []

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        self.seen.append((heat, current))
        return Placement(np.roll(current.slots, 1, axis=1), current.experts)


def test_each_plan_sees_the_window_before_and_its_own_placement() -> None:
    windows = np.split(skewed(12, 2, 8, sigma=1, tokens=400), 4)
    policy = Turner()
    ended: list[int] = []
    result = simulate(windows, policy, GROUP, LINEAR, FREE, done=lambda: ended.append(1))
    shown = policy.seen[-3:]  # the first call of all warms up
    assert len(ended) == len(shown) == len(result.judged) == 3
    current = LINEAR
    for number, (heat, placement) in enumerate(shown):
        np.testing.assert_array_equal(heat.steps, windows[number])
        assert not heat.steps.flags.writeable
        assert placement == current
        one = result.judged[number]
        expected = by_hand(one.placement, windows[number + 1])
        assert one.loads.hottest.ravel().tolist() == pytest.approx(
            [hot for step in expected for hot, _ in step]
        )
        assert one.moves == int(one.placement.moves_from(current).sum())
        current = one.placement
    assert windows[0].flags.writeable, "the caller's array was locked"


class Faulty:
    """Fails in the way that it was made for."""

    name = "faulty"
    eplbd_api = 1

    def __init__(self, way: str) -> None:
        self.way = way

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        if current.layers == 2 and current.experts == 8 and topology.ranks == 2:
            return current  # warming up
        match self.way:
            case "raises":
                raise RuntimeError("out of ideas\nsecond line")
            case "returns a list":
                return current.slots.tolist()  # type: ignore[no-any-return]
            case "loses an expert":
                return Placement(np.zeros_like(current.slots), current.experts)
            case "spends":
                return Placement(np.roll(current.slots, 1, axis=1), current.experts)
        shares = np.full(current.slots.shape, 0.5, dtype=np.float32)
        return Placement(current.slots, current.experts, shares)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("raises", "RuntimeError: out of ideas"),
        ("returns a list", "returned list, expected eplbd.Placement"),
        ("loses an expert", "holds expert 1 in no slot"),
        ("spends", "moves, allowed are 3"),
        ("shares", "shares per replica, which the budget does not allow"),
    ],
)
def test_a_failure_is_named_and_changes_nothing(way: str, said: str) -> None:
    windows = np.split(skewed(6, 2, 8, sigma=1, tokens=400), 3)
    budget = Budget(3, None, 10.0, 1000)
    result = simulate(windows, Guest("faulty", lambda: Faulty(way)), GROUP, LINEAR, budget)
    held = baseline(windows, GROUP, LINEAR, budget)
    assert [one.placement for one in result.judged] == [LINEAR, LINEAR]
    assert result.row()["par_paid"] == held.row()["par_paid"]
    assert len(result.failures) == 2
    assert result.failures[0].startswith("window 0: ")
    assert said in result.failures[0]
    assert "\n" not in result.failures[0]


def test_the_stall_is_that_of_rounds_and_slowest_links() -> None:
    swapped = LINEAR.slots.copy()
    swapped[0, 0, 0], swapped[0, 1, 0] = swapped[0, 1, 0], swapped[0, 0, 0]
    bandwidth = Bandwidth(rank=1e9, node=100.0, network=10.0)
    near = transfer(LINEAR, Placement(swapped, 8), GROUP, bandwidth, 1000)
    # Experts 0 and 3: 0 has a copy on rank 2, which is farther; both move within the node at once.
    assert (near.epochs, near.rounds) == (1, 1)
    assert near.seconds == pytest.approx(10.0)
    far = LINEAR.slots.copy()
    far[0, 0, 0], far[0, 2, 0] = far[0, 2, 0], far[0, 0, 0]
    apart = transfer(LINEAR, Placement(far, 8), GROUP, bandwidth, 1000)
    assert apart.rounds == 1
    assert apart.seconds == pytest.approx(100.0)
    assert transfer(LINEAR, LINEAR, GROUP, bandwidth, 1000).seconds == 0


@given(
    experts=st.integers(1, 40), ranks=st.integers(1, 8), extra=st.integers(0, 6), nodes=st.just(1)
)
def test_layouts_place_every_expert(experts: int, ranks: int, extra: int, nodes: int) -> None:
    slots = -(-experts // ranks) + extra
    group = layouts.group(ranks, slots, nodes, experts)
    for choice in ("linear", "spread"):
        placement = layouts.initial(choice, 2, experts, group, None)
        assert (placement.replicas() > 0).all()
    if experts >= ranks:
        off = layouts.unbalanced(2, experts, ranks)
        assert (off.replicas() > 0).all()
        even = off.hosts().sum(2)
        assert even.max() - even.min() <= 1


def test_a_spread_layout_is_even_where_heat_is() -> None:
    group = layouts.group(8, 9, 1, 64)
    heat = np.full((1, 1, 64), 7, dtype=np.int32)
    spread = layouts.initial("spread", 1, 64, group, None)
    linear = layouts.initial("linear", 1, 64, group, None)
    worth = [baseline([heat, heat], group, one, FREE).par_paid for one in (spread, linear)]
    assert worth[0] < worth[1]
    assert worth[0] == pytest.approx(1.0, abs=0.07)
    assert (np.diff(np.sort(spread.slots, axis=2)) > 0).all(), "an expert twice on a rank"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((4, 1, 1, 8), "8 experts do not fit on 4 ranks x 1 slots; expected at least 2 slots"),
        ((4, 3, 3, 8), "4 ranks on 3 nodes"),
    ],
)
def test_a_group_that_cannot_be_is_refused(arguments: tuple[int, int, int, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        layouts.group(*arguments)


def test_windows_are_equal_and_a_remainder_is_left_out() -> None:
    rows = np.arange(23 * 2 * 3, dtype=np.int32).reshape(23, 2, 3)
    windows = cut(rows, 5)
    assert [len(window) for window in windows] == [4] * 5
    np.testing.assert_array_equal(np.concatenate(windows), rows[:20])
    assert len(cut(rows[:3], 12)) == 3
    with pytest.raises(ConfigError, match="at least two windows"):
        cut(rows[:1], 12)


def saved(tmp_path: Path, rows: int = 12) -> Path:
    path = tmp_path / "trace.npz"
    heat = skewed(rows, 2, 8, sigma=1, tokens=400).astype(np.int64)
    save_trace(path, HeatTrace(heat, 2, ("",) * rows, {"window": "made up"}))
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_a_row_per_policy_and_hold_first(tmp_path: Path) -> None:
    path = saved(tmp_path)
    shape = ("--ranks", 4, "--slots", 3, "--nodes", 2, "--windows", 4)
    code, out, _ = run("simulate", path, *shape, "--policy", "greedy,hold,1", "--json", "-")
    assert code == 0, out
    rows = json.loads(out)
    assert [row["policy"] for row in rows] == ["hold", "greedy"]
    assert rows[1]["par_mean"] < rows[0]["par_mean"]
    assert rows[1]["bytes"] == rows[1]["moves"] * 44_040_192
    assert {"par_p95", "par_p99", "moves_per_layer", "plan_ms", "stall_ms"} <= set(rows[1])
    guest, windows = invite(["greedy"])[0], cut(load(path).rows, 4)
    group = layouts.group(4, 3, 2, 8)
    budget = Budget(None, None, 10.0, 44_040_192)
    same = simulate(windows, guest, group, LINEAR, budget, bandwidth=Bandwidth()).row()
    timing = {"plan_ms", "plan_ms_max"}
    assert {k: v for k, v in same.items() if k not in timing} == {
        k: v for k, v in rows[1].items() if k not in timing
    }
    code, out, _ = run("simulate", path, *shape, "--json", tmp_path / "rows.json")
    assert code == 0
    firsts = [line.split()[0] for line in out.splitlines() if line]
    assert firsts[-4:] == ["policy", "hold", Policy().name, "off"]
    assert json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "does not tell the number of ranks; give --ranks"),
        (("--ranks", 4, "--slots", 1), "do not fit"),
        (("--ranks", 4, "--policy", "gredy"), "unknown policy `gredy`; did you mean `greedy`"),
        (("--ranks", 4, "--policy", ","), "names no policy"),
        (("--ranks", 4, "--option", "greedy.x"), "expected POLICY.KEY=VALUE"),
        (("--ranks", 4, "--policy", "greedy", "--option", "greedy.x=1"), "no such option"),
        (("--ranks", 4, "--option", "swift.x=1"), "options for `swift`, which is not simulated"),
        (("--ranks", 4, "--phase", "decode"), "has no step of phase decode"),
        (("--ranks", 4, "--phase", "x"), "phase 'x'; expected all, prefill, decode"),
        (("--ranks", 4, "--initial", "recorded"), "does not hold its placement"),
        (("--ranks", 4, "--initial", "absent.npz"), "absent.npz: does not exist"),
        (("--ranks", 4, "--node-gbps", 0), "expected > 0"),
        (("--ranks", 4, "--json", "/absent/x.json"), "cannot be written"),
    ],
)
def test_what_cannot_be_simulated_is_one_sentence(
    tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    code, _, err = run("simulate", saved(tmp_path), *arguments)
    assert code == 1
    assert said in err
    assert "Traceback" not in err


def test_a_recording_brings_its_group_and_its_placement(tmp_path: Path) -> None:
    meta = TraceMeta(
        layers=2, experts=8, ranks=4, slots_per_rank=3, node_of=(0, 0, 1, 1), expert_bytes=77
    )
    with recording(tmp_path / "r", meta, chunk_steps=5) as writer:
        writer.placed(0, LINEAR)
        for forward, heat in enumerate(skewed(20, 2, 8, sigma=1, tokens=400)):
            writer.add(heat, forward=forward, epoch=0, phase=1 + forward % 2)
    code, out, err = run("simulate", tmp_path / "r", "--initial", "recorded", "--json", "-")
    assert code == 0, err
    rows = json.loads(out)
    assert rows[1]["bytes"] == 77 * rows[1]["moves"] > 0
    code, out, err = run("simulate", tmp_path / "r", "--phase", "decode", "--windows", "2")
    assert code == 0, err
    assert "2 windows of 5 forward(s)" in out
    other = tmp_path / "other.npz"
    save_placement(other, Placement.linear(2, 8, 4, 4))
    code, _, err = run("simulate", tmp_path / "r", "--initial", other)
    assert code == 1
    assert "shape (2, 4, 4), expected (2, 4, 3)" in err


def test_a_trace_that_no_policy_can_be_shown_is_refused(tmp_path: Path) -> None:
    heat = np.full((4, 2, 8), 5, np.int64)
    heat[3, 1, 2] = 1 << 31
    save_trace(tmp_path / "large.npz", HeatTrace(heat, 2, ("",) * 4, {}))
    with pytest.raises(ConfigError, match="window 3, layer 1, expert 2 is 2147483648") as refusal:
        load(tmp_path / "large.npz")
    assert "large.npz" in str(refusal.value)
    meta = TraceMeta(layers=2, experts=8, ranks=4, slots_per_rank=3, node_of=(0,) * 4)
    with recording(tmp_path / "idle", meta) as writer:
        writer.add(np.zeros((2, 8), np.int32), forward=0, epoch=0, dummy=True)
    with pytest.raises(ConfigError, match="idle: holds no step with tokens"):
        load(tmp_path / "idle")
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "absent.npz")


def test_shared_traces_can_be_simulated(shared_traces: Path) -> None:
    for name in ("flame290m_prefill", "gptoss20b_mmlu_drift"):
        path = shared_traces / f"{name}.npz"
        code, out, err = run("simulate", path, "--ranks", 8, "--windows", 4, "--json", "-")
        assert code == 0, err
        hold, greedy = json.loads(out)
        assert greedy["failures"] == []
        assert 1 <= greedy["par_mean"] < hold["par_mean"]
