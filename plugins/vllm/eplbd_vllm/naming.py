"""What an EP group is called: one daemon serves several, and tells them apart by it.

Owns the name, which stays the same when the engine starts again as it was: what is kept of a group
is kept under it. It must not know vLLM beyond the attributes of its configuration, nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from eplbd_vllm.settings import Settings

ROLES = {"kv_producer": "prefill", "kv_consumer": "decode"}
"""`kv_role` of `KVTransferConfig`, where prefill and decode are engines of their own."""

DEVICES = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")


class ModelConfig(Protocol):
    """`ModelConfig`, of either engine."""

    model: str
    served_model_name: str | list[str] | None


class ParallelConfig(Protocol):
    """`ParallelConfig`. Where there are pipeline stages it says how many."""

    tensor_parallel_size: int


class Config(Protocol):
    """`VllmConfig`."""

    @property
    def model_config(self) -> ModelConfig:
        """What is served."""
        ...

    @property
    def parallel_config(self) -> ParallelConfig:
        """On how many ranks."""
        ...


def group_name(
    settings: Settings, config: Config, env: Mapping[str, str], first_rank: int = 0
) -> str:
    """Return the operator's name, or model, role and first device; and the pipeline stage.

    first_rank: of the world, of the group. Two engines of one node that serve the same model in the
    same role run on other devices: one that does not begin on the first visible device is called by
    it, `model@4`. On a CPU, and where devices are told apart in another way, the operator names
    them. As rank 0 sees it: `Guest` tells the others.
    """
    if settings.group:
        return f"{settings.group}{_stage(config, first_rank)}"
    model = config.model_config
    name = model.served_model_name or model.model
    first = name if isinstance(name, str) else name[0]
    base = first.rstrip("/").rpartition("/")[2] or "default"
    return f"{base}{_role(config)}{_place(env)}{_stage(config, first_rank)}"


def _role(config: Config) -> str:
    transfer = getattr(config, "kv_transfer_config", None)
    role = ROLES.get(getattr(transfer, "kv_role", None) or "")
    return f"-{role}" if role else ""


def _place(env: Mapping[str, str]) -> str:
    visible = next((env[name] for name in DEVICES if env.get(name)), "")
    first = visible.split(",")[0].strip()
    return "" if first in ("", "0") else f"@{first}"


def _stage(config: Config, first_rank: int) -> str:
    """Ranks of the world run through tensor parallelism first, then through the stages."""
    parallel = config.parallel_config
    stages: int = getattr(parallel, "pipeline_parallel_size", 1)
    if stages == 1:
        return ""
    width = parallel.tensor_parallel_size * getattr(parallel, "prefill_context_parallel_size", 1)
    return f"-stage{first_rank // width % stages}"
