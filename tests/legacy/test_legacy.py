"""The engines' configuration, key by key, and what eplbd makes of it."""

import json
from collections.abc import Mapping

import pytest
from click.testing import CliRunner

from eplbd.cli import main
from eplbd.config import load
from eplbd.errors import ConfigError
from eplbd.legacy import ALIASES, KEYS, POLICIES, Value, translate

Settings = Mapping[str, Mapping[str, Value]]

ROWS: list[tuple[str, object, Settings, str]] = [
    ("dynamic_eplb", True, {"balance": {"mode": "dynamic"}}, "stays with the engine"),
    ("dynamic_eplb", False, {"balance": {"mode": "hold"}}, "nothing to balance"),
    (
        "expert_heat_collection_interval",
        600,
        {"balance": {"window_steps": 600}},
        "600 forwards are no time",
    ),
    (
        "expert_heat_collection_interval",
        50,
        {"balance": {"window_steps": 50, "min_steps": 50}},
        "balance.window_steps = 50",
    ),
    (
        "expert_heat_collection_interval",
        20_000,
        {"balance": {"window_steps": 8192}},
        "at most 8192 steps",
    ),
    ("algorithm_execution_interval", 50, {}, "policy.deadline_s"),
    ("num_redundant_experts", 16, {}, "stays with the engine"),
    *[
        ("eplb_policy_type", number, {"policy": {"name": name}}, f"policy.name = {name!r}")
        for number, name in POLICIES.items()
    ],
    ("eplb_heat_collection_stage", "decode", {"balance": {"phase": "decode"}}, "balance.phase"),
    ("load_collection_phase", "prefill", {"balance": {"phase": "prefill"}}, "balance.phase"),
    (
        "expert_map_path",
        "/maps/a.json",
        {"balance": {"mode": "static", "map": "/maps/a.json"}},
        "balance.mode = 'static'",
    ),
    (
        "expert_map_record_path",
        "/maps/b.json",
        {"balance": {"mode": "record"}, "record": {"dir": "/maps/b"}},
        "balance.mode = 'record'",
    ),
    (
        "num_iterations_eplb_update",
        400,
        {"balance": {"window_steps": 400}},
        "num_iterations_eplb_update is succeeded by balance.window_steps",
    ),
    ("num_wait_worker_iterations", 30, {}, "num_wait_worker_iterations: no forward waits"),
    ("init_redundancy_expert", 16, {}, "init_redundancy_expert: stays with the engine"),
    ("gate_eplb", True, {"balance": {"interval_s": 86_400.0}}, "at most one rebalance a day"),
    ("enable_eplb", True, {"balance": {"mode": "dynamic"}}, "stays with the engine"),
    ("enable_eplb", False, {"balance": {"mode": "hold"}}, "nothing to balance"),
    ("window_size", 1000, {"balance": {"window_steps": 1000}}, "balance.window_steps = 1000"),
    ("step_interval", 3000, {}, "3000 forwards are no time"),
    ("log_balancedness", True, {}, "metrics"),
    ("log_balancedness_interval", 1, {}, "metrics"),
    ("use_async", True, {}, "beside the forwards"),
    ("policy", "default", {"policy": {"name": "greedy"}}, "policy.name = 'greedy'"),
    ("communicator", "nixl", {}, "executor"),
    ("enable_migration_batching", True, {}, "transfer.bytes_per_round"),
    ("eplb_window_size", 32, {"balance": {"window_steps": 32, "min_steps": 32}}, "eplb_window"),
    ("eplb_step_interval", 100, {}, "100 forwards are no time"),
    ("eplb_log_balancedness", False, {}, "metrics"),
    ("DYNAMIC_EPLB", "true", {}, "stays with the engine"),
    ("EXPERT_MAP_RECORD", "true", {}, "stays with the engine"),
    ("VLLM_ALLOW_EXPERT_LOAD_COLLECTING", "1", {}, "leave it out"),
    ("PYTHONOPTIMIZE", 1, {}, "leave it out"),
]


def refusal(given: Mapping[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        translate(given)
    return str(caught.value)


@pytest.mark.parametrize(("key", "value", "settings", "word"), ROWS)
def test_every_key_becomes_a_setting_or_a_reason(
    key: str, value: object, settings: Settings, word: str
) -> None:
    translation = translate({key: value})
    assert translation.settings == settings
    assert any(word in warning for warning in translation.warnings), translation.warnings


def test_no_key_lacks_a_row() -> None:
    assert {row[0] for row in ROWS} == {*KEYS, *ALIASES}


def test_no_key_is_passed_over_in_silence() -> None:
    silent = {"gate_eplb": False}
    for key, value, _, _ in ROWS:
        assert translate({key: value}).warnings
    assert translate(silent).settings == {}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"expert_heat_collection_interval": 0},
            (
                "expert_heat_collection_interval: expected at least 1, got 0: with 0 vllm-ascend's "
                "worker waits for ever for a plan that nobody asked for"
            ),
        ),
        (
            {"num_wait_worker_iterations": 0},
            (
                "num_wait_worker_iterations: expected at least 1, got 0: with 0 vllm-ascend's "
                "worker waits for ever for a plan that nobody asked for"
            ),
        ),
        ({"window_size": 0}, "window_size: expected at least 1, got 0"),
        ({"num_redundant_experts": -1}, "num_redundant_experts: expected at least 0, got -1"),
        (
            {"num_redundant_experts": True},
            "num_redundant_experts: expected a whole number, got True",
        ),
        ({"dynamic_eplb": "true"}, "dynamic_eplb: expected true or false, got 'true'"),
        ({"eplb_policy_type": 4}, "eplb_policy_type: expected one of 0, 1, 2, 3, got 4"),
        (
            {"eplb_heat_collection_stage": "decoder"},
            (
                "eplb_heat_collection_stage: expected one of all, prefill, decode, got 'decoder'; "
                "did you mean `decode`?"
            ),
        ),
        (
            {"expert_map_path": "/maps/a.yaml"},
            "expert_map_path: expected the path of a .json file, got '/maps/a.yaml'",
        ),
        (
            {"dynamic_eplbs": True},
            "unknown key `dynamic_eplbs`; did you mean `dynamic_eplb`?",
        ),
        (
            {"chunked": True},
            "unknown key `chunked`; leave out what does not concern the balancing of experts",
        ),
        (
            {"additional_config": {"eplb_config": {"topk": 3}}},
            "unknown key `topk`; leave out what does not concern the balancing of experts",
        ),
        (
            {"expert_heat_collection_interval": 600, "num_iterations_eplb_update": 400},
            (
                "num_iterations_eplb_update = 400 contradicts expert_heat_collection_interval = "
                "600: two names of one setting; keep one"
            ),
        ),
        (
            {"expert_heat_collection_interval": 600, "window_size": 1000},
            (
                "expert_heat_collection_interval = 600 and window_size = 1000 name two windows; "
                "keep the one of your engine"
            ),
        ),
        (
            {"eplb_heat_collection_stage": "decode", "load_collection_phase": "prefill"},
            (
                "eplb_heat_collection_stage = 'decode' and load_collection_phase = 'prefill' name "
                "two phases; keep the one of your engine"
            ),
        ),
        (
            {"eplb_policy_type": 2, "policy": "default"},
            "eplb_policy_type is vllm-ascend's and policy is vLLM's; keep the one of your engine",
        ),
        (
            {"expert_map_path": "/a.json", "expert_map_record_path": "/b.json"},
            (
                "expert_map_path and expert_map_record_path: a map is put in force or recorded, "
                "not both; record first, then serve with what was recorded"
            ),
        ),
        ({"eplb_config": 3}, "eplb_config: expected a table of keys, got 3"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(
    given: Mapping[str, object], sentence: str
) -> None:
    assert refusal(given) == sentence


def test_all_faults_are_told_at_once() -> None:
    assert len(refusal({"gate_eplbs": True, "window_size": 0}).splitlines()) == 2


def test_the_documented_record_mode_of_old() -> None:
    """The example of the SwiftBalancer guide: flat keys, one-shot, a map to be written."""
    given = {
        "expert_map_record_path": "/xx/xx.json",
        "init_redundancy_expert": 16,
        "dynamic_eplb": True,
        "num_iterations_eplb_update": 400,
        "gate_eplb": True,
        "num_wait_worker_iterations": 30,
    }
    assert translate(given).settings == {
        "balance": {
            "window_steps": 400,
            "interval_s": 86_400.0,
            "mode": "record",
        },
        "record": {"dir": "/xx/xx"},
    }


def test_keys_that_lie_beside_are_passed_over_unless_they_look_like_ours() -> None:
    beside = {"ascend_scheduler_config": {"enabled": True}, "eplb_config": {"dynamic_eplb": True}}
    assert translate(beside).settings == {"balance": {"mode": "dynamic"}}
    assert "did you mean `gate_eplb`" in refusal({**beside, "gate_eplbb": True})


def test_a_map_beside_dynamic_is_the_engines_start() -> None:
    given = {"dynamic_eplb": True, "expert_map_path": "/a.json"}
    assert translate(given).settings == {"balance": {"mode": "dynamic"}}


def test_forwards_become_seconds_where_their_time_is_stated() -> None:
    given = {"expert_heat_collection_interval": 600, "algorithm_execution_interval": 50}
    translation = translate(given, forward_s=0.03)
    assert translation.settings["balance"]["interval_s"] == pytest.approx(650 * 0.03)
    assert not any("no time" in warning for warning in translation.warnings)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}={row[1]}")
def test_the_fragment_is_one_that_eplbd_reads(
    row: tuple[str, object, Settings, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("fragment") / "eplbd.toml"
    file.write_text(translate({row[0]: row[1]}).toml())
    values = {path: value for path, value, origin in load(file).rows() if origin != "default"}
    expected = {f"{s}.{key}": v for s, keys in row[2].items() for key, v in keys.items()}
    assert values == expected


class TestCommand:
    def test_prints_a_fragment_and_warns_beside_it(self) -> None:
        given = json.dumps({"eplb_config": {"eplb_policy_type": 2}})
        result = CliRunner().invoke(main, ["translate", given])
        assert result.exit_code == 0
        assert result.stdout == '[policy]\nname = "swift"\n'
        assert "policy.name" in result.stderr

    def test_reads_a_file(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        file = tmp_path_factory.mktemp("given") / "eplb.json"
        file.write_text('{"window_size": 100}')
        result = CliRunner().invoke(main, ["translate", str(file), "--forward-ms", "30"])
        assert result.stdout == "[balance]\nwindow_steps = 100\n"

    @pytest.mark.parametrize("given", ["{", "[1]", "/no/such.json"])
    def test_refuses_what_is_no_table(self, given: str) -> None:
        result = CliRunner().invoke(main, ["translate", given])
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
