"""The sentences that refuse an engine: each condition broken alone, and none for a good one."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from eplbd_vllm.conditions import of_configuration, of_layers, of_release


def good() -> tuple[Any, Any, Any]:
    """Configuration, model and runner of an engine that can be balanced."""
    parallel = SimpleNamespace(
        enable_expert_parallel=True,
        enable_eplb=True,
        enable_elastic_ep=False,
        tensor_parallel_size=2,
        data_parallel_size=1,
        pipeline_parallel_size=1,
        prefill_context_parallel_size=1,
    )
    config = SimpleNamespace(
        parallel_config=parallel, model_config=SimpleNamespace(model="some/model"), lora_config=None
    )
    experts = SimpleNamespace(
        global_num_experts=10, expert_map_manager=SimpleNamespace(placement_strategy="linear")
    )
    layer = SimpleNamespace(
        layer_name="model.layers.0.mlp.experts",
        routed_experts=experts,
        eplb_state=object(),
        is_monolithic=False,
        do_naive_dispatch_combine=False,
    )
    model = SimpleNamespace(num_moe_layers=1, num_physical_experts=10, moe_layers=[layer])
    runner = SimpleNamespace(eplb_state=SimpleNamespace(model_states={"model": object()}))
    return config, model, runner


def broken(path: str, value: object) -> tuple[Any, Any, Any]:
    """A good engine but for one attribute."""
    found = dict(zip(("config", "model", "runner"), copy.deepcopy(good()), strict=True))
    first, *middle, last = path.split(".")
    thing = found[first]
    for name in middle:
        thing = thing[int(name)] if name.isdigit() else getattr(thing, name)
    setattr(thing, last, value)
    return found["config"], found["model"], found["runner"]


def test_a_good_engine_is_not_refused() -> None:
    config, model, runner = good()
    assert of_configuration(config, model) == ""
    assert of_layers(model, runner) == ""


def test_a_dense_model_is_named() -> None:
    config, _, _ = good()
    assert "some/model has no layers of experts" in of_configuration(config, None)


@pytest.mark.parametrize(
    ("path", "value", "fix"),
    [
        ("config.parallel_config.enable_expert_parallel", False, "--enable-expert-parallel"),
        ("config.parallel_config.enable_eplb", False, "--enable-eplb"),
        ("config.parallel_config.tensor_parallel_size", 1, "one EP rank"),
        ("config.parallel_config.pipeline_parallel_size", 2, "--pipeline-parallel-size 1"),
        ("config.parallel_config.prefill_context_parallel_size", 2, "without it"),
        ("config.parallel_config.enable_elastic_ep", True, "--enable-elastic-ep"),
        ("config.lora_config", object(), "without LoRA"),
    ],
)
def test_a_configuration(path: str, value: object, fix: str) -> None:
    config, model, _ = broken(path, value)
    assert fix in of_configuration(config, model)


@pytest.mark.parametrize(
    ("path", "value", "fix"),
    [
        ("model.moe_layers", [], "announces 1 layers, 0 are here"),
        ("runner.eplb_state", None, "no EPLB state for this model"),
        ("runner.eplb_state.model_states", {"a": 1, "b": 2}, "without that drafter"),
        ("model.moe_layers.0.eplb_state", None, "has no EPLB state"),
        ("model.moe_layers.0.is_monolithic", True, "another MoE backend"),
        ("model.moe_layers.0.do_naive_dispatch_combine", True, "another MoE backend"),
        (
            "model.moe_layers.0.routed_experts.expert_map_manager.placement_strategy",
            "round_robin",
            "--expert-placement-strategy linear",
        ),
        ("model.moe_layers.0.routed_experts.global_num_experts", 11, "shared experts fused"),
    ],
)
def test_layers(path: str, value: object, fix: str) -> None:
    _, model, runner = broken(path, value)
    assert fix in of_layers(model, runner)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu"])
def test_releases_that_were_tried(version: str) -> None:
    assert of_release(version, unverified=False) == ""


def test_another_release_is_refused_and_can_be_tried() -> None:
    said = of_release("0.33.0", unverified=False)
    assert "EPLBD_UNVERIFIED=1" in said
    assert of_release("0.33.0", unverified=True) == ""
