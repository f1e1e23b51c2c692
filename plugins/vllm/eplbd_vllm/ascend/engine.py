"""What the adapter uses of vllm-ascend, as types: every attribute that an upgrade may take away.

Written from the sources of vllm-ascend 0.23.0.post1; `VERIFIED` names the releases that were tried.
Owns the shapes of the engine's objects as the adapter sees them, and which releases it knows. It
must not import vllm-ascend or torch: both belong to the engine.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

VERIFIED = ("0.23.",)
"""Prefixes of versions that the tests ran."""


class Generation(enum.StrEnum):
    """Which of vllm-ascend's two balancers a worker has."""

    V1 = "ascend-v1"
    """`dynamic_eplb`: its own slots, lists of tensors, one `log2phy` per layer."""
    V2 = "ascend-v2"
    """`--enable-eplb` with model runner V2: vLLM's state, and a routing table per layer."""


class ExpertWeightKey(Protocol):
    """`QuantType`, a member of an enum."""

    @property
    def name(self) -> str:
        """How the sources call it."""
        ...


class MoeConfig(Protocol):
    """`FusedMoEConfig`."""

    has_bias: bool


class Layer(Protocol):
    """`AscendFusedMoE` or `AscendRoutedExperts`: one layer's experts on this rank.

    moe_load: `[slots]` int64 tokens that each slot processed since it was cleared; with policy 3
    `[steps, slots]` int32, one row per step, `multi_stage` saying so. log2phy: `[experts]` int32,
    the slot that this rank sends an expert's tokens to. global_expert_map: `[ranks, experts]` int32
    on the host, the local slot of an expert, -1 where it has none.
    """

    ep_rank: int
    local_num_experts: int
    dynamic_eplb: bool
    multi_stage: bool
    mix_placement: bool
    moe_load: Tensor
    log2phy: Tensor | None
    global_expert_map: Tensor | None


class Adaptor(Protocol):
    """`VllmEplbAdaptor`: it finds a rank's layers and what an expert consists of.

    expert_weight_key_per_layer: layer to (quantisation, whether MC2 is fused). param_dict:
    `layer.name` to a tensor `[slots, ...]` or one tensor per slot.
    """

    model: Module
    moe_layers: Sequence[Layer]
    expert_weight_key_per_layer: Mapping[int, tuple[ExpertWeightKey, bool]]
    param_dict: Mapping[str, Tensor | Sequence[Tensor]]

    def get_global_expert_map(self) -> Tensor:
        """Return `[layers, ranks, experts]` int32 on the host."""
        ...


class EplbConfig(Protocol):
    """`EplbConfig`."""

    expert_map_record_path: str | None


class AscendConfig(Protocol):
    """`AscendConfig`."""

    eplb_config: EplbConfig


class Updator(Protocol):
    """`EplbUpdator`: the engine's own balancer, called around every forward."""

    def shutdown(self) -> None:
        """End its child process."""
        ...


class Manager(Protocol):
    """`multiprocessing.managers.SyncManager`: one more child process, with the updator's dict."""

    def shutdown(self) -> None:
        """End it."""
        ...


class Runner(Protocol):
    """`NPUModelRunner` of the first generation. drafter: None, or an object with a `model`."""

    model: Module
    drafter: object
    dynamic_eplb: bool
    is_eplb_warmuped: bool
    eplb_updator: Updator
    eplb_heat_collection_stage: str
    eplb_heat_collection_status: bool
    manager: Manager
    ascend_config: AscendConfig


class ParallelConfig(Protocol):
    """`ParallelConfig`."""

    tensor_parallel_size: int
    data_parallel_rank: int


class SchedulerConfig(Protocol):
    """`SchedulerConfig`."""

    max_num_batched_tokens: int


class ModelConfig(Protocol):
    """`ModelConfig`."""

    model: str
    served_model_name: str | list[str] | None


class VllmConfig(Protocol):
    """`VllmConfig`."""

    parallel_config: ParallelConfig
    scheduler_config: SchedulerConfig
    model_config: ModelConfig


class Worker(Protocol):
    """`NPUWorker`."""

    rank: int
    vllm_config: VllmConfig
    model_runner: Runner


class Group(Protocol):
    """`GroupCoordinator` of the ranks that share experts."""

    rank_in_group: int
    world_size: int
    ranks: Sequence[int]


def of_release(version: str, *, unverified: bool) -> str:
    """Return why this release of vllm-ascend is refused; empty if it is not."""
    if version.startswith(VERIFIED) or unverified:
        return ""
    known = ", ".join(f"{prefix}x" for prefix in VERIFIED)
    return (
        f"vllm-ascend {version} is not among the releases that this adapter was tried with "
        f"({known}): upgrade eplbd-vllm, or set EPLBD_UNVERIFIED=1 and run `eplbd-vllm doctor`"
    )
