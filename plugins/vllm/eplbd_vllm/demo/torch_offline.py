"""An engine in this very process: one rank, or one of those that torchrun started.

Owns the engine's options, and the way from it to the worker in it. It must not know what is asked
of it, nor whether anybody balances it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from vllm import LLM
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

from eplbd_vllm.hooks import Wrapper

THEIR_INTERVAL = 16
"""Steps after which vLLM's own balancer acts, unless it was switched off."""


def offline_engine(
    model: str | Path,
    *,
    ranks: int = 1,
    experts: bool = True,
    redundant: int | None = None,
    compiled: bool = False,
) -> LLM:
    """Load `model`.

    ranks: tensor-parallel. experts: whether each rank has experts of its own, not parts of all.
    redundant: slots more than experts, None without EPLB. compiled: torch.compile, not eager.
    """
    _block_rather_than_spin()
    options: dict[str, Any] = {}
    if ranks > 1:
        options |= {
            "tensor_parallel_size": ranks,
            "distributed_executor_backend": "external_launcher",
            "enable_expert_parallel": experts,
        }
    if redundant is not None:
        options |= {
            "enable_eplb": True,
            "eplb_config": {
                "num_redundant_experts": redundant,
                "window_size": THEIR_INTERVAL,
                "step_interval": THEIR_INTERVAL,
            },
        }
    return LLM(
        model=str(model),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=16,
        enforce_eager=not compiled,
        enable_prefix_caching=False,
        seed=0,
        **options,
    )


def _block_rather_than_spin() -> None:
    """Let ranks that share cores meet over gloo.

    The shared-memory communicator spins for a peer that its spinning keeps from running, and all
    engines of a machine that torchrun started share the name of its segments.
    """
    setattr(CpuCommunicator, "_all_group_ranks_share_shm_group_name", lambda _: False)  # noqa: B010


def wrapper_of(llm: LLM) -> Wrapper:
    """The worker's wrapper of this process."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    return cast("Wrapper", executor.driver_worker)
