"""Names of EP groups: different where two meet at one daemon, the same after a restart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from eplbd_vllm.naming import group_name
from eplbd_vllm.settings import Settings


def config(
    served: str | list[str] | None = None, role: str | None = None, stages: int = 1, tp: int = 2
) -> SimpleNamespace:
    transfer = None if role is None else SimpleNamespace(kv_role=role)
    return SimpleNamespace(
        model_config=SimpleNamespace(model="/models/tiny/", served_model_name=served),
        parallel_config=SimpleNamespace(tensor_parallel_size=tp, pipeline_parallel_size=stages),
        kv_transfer_config=transfer,
    )


def named(
    made: SimpleNamespace, group: str = "", env: dict[str, str] | None = None, first: int = 0
) -> str:
    return group_name(Settings("", group, "auto", 2), made, env or {}, first)


@pytest.mark.parametrize(
    ("group", "served", "expected"),
    [
        ("ours", None, "ours"),
        ("", None, "tiny"),
        ("", "some/served", "served"),
        ("", ["first/", "second"], "first"),
    ],
)
def test_as_the_operator_or_the_model(
    group: str, served: str | list[str] | None, expected: str
) -> None:
    assert named(config(served), group) == expected


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("kv_producer", "tiny-prefill"),
        ("kv_consumer", "tiny-decode"),
        ("kv_both", "tiny"),
        (None, "tiny"),
    ],
)
def test_prefill_and_decode_are_two_groups(role: str | None, expected: str) -> None:
    assert named(config(role=role)) == expected


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "tiny"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "tiny"),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, "tiny@4"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "8, 9"}, "tiny@8"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5a,GPU-5b"}, "tiny@GPU-5a"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "tiny"),
    ],
)
def test_replicas_are_told_apart_by_their_devices(env: dict[str, str], expected: str) -> None:
    assert named(config(), env=env) == expected


def test_pipeline_stages_are_groups_of_their_own_whoever_named_them() -> None:
    """Four stages of two ranks each; with two data-parallel ranks the stages come again."""
    made = config(stages=4)
    assert [named(made, first=2 * stage) for stage in range(4)] == [
        f"tiny-stage{stage}" for stage in range(4)
    ]
    assert named(made, "ours", first=2 + 8) == "ours-stage1"


def test_all_of_it() -> None:
    env = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    assert named(config(role="kv_consumer", stages=2), env=env, first=2) == "tiny-decode@4-stage1"
    assert named(config(), "ours", env) == "ours"


def test_an_engine_that_knows_no_roles_has_none() -> None:
    made = config()
    del made.kv_transfer_config
    assert named(made) == "tiny"
