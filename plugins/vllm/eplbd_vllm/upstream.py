"""What the adapter uses of vLLM, as types: every attribute that an upgrade may take away.

Written from the sources of vLLM 0.32.0; `VERIFIED` names the releases that were tried. Owns the
shapes of the engine's objects as the adapter sees them. It must not import vLLM or torch: both
belong to the engine, and the daemon's environment has neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

VERIFIED = ("0.32.",)
"""Prefixes of versions that the tests ran."""


class LayerState(Protocol):
    """`EplbLayerState`: what one layer's router reads and counts into.

    Maps as in `ModelState`, of one layer. expert_load_view: `[slots]` int32. should_record_tensor:
    0-d bool, one for all layers. num_unpadded_tokens_tensors: one 0-d int32 per micro-batch.
    """

    expert_load_view: Tensor | None
    logical_to_physical_map: Tensor | None
    logical_replica_count: Tensor | None
    should_record_tensor: Tensor | None
    num_unpadded_tokens_tensors: list[Tensor] | None


class ModelState(Protocol):
    """`EplbModelState`: the maps of all layers of one model.

    physical_to_logical_map: `[layers, slots]`. logical_to_physical_map: `[layers, experts, width]`,
    -1 padded. logical_replica_count: `[layers, experts]`. All int64 on the device.
    """

    physical_to_logical_map: Tensor
    logical_to_physical_map: Tensor
    logical_replica_count: Tensor


class State(Protocol):
    """`EplbState`: the engine's own balancer."""

    @property
    def model_states(self) -> Mapping[str, ModelState]:
        """One for the model, one more for a drafter with experts."""
        ...


class ExpertMapManager(Protocol):
    """Which slots a rank has."""

    placement_strategy: str


class ParallelOfMoe(Protocol):
    """`FusedMoEParallelConfig`."""

    use_ep: bool
    ep_size: int
    ep_rank: int


class MoeConfig(Protocol):
    """`FusedMoEConfig`."""

    is_sequence_parallel: bool
    moe_parallel_config: ParallelOfMoe


class RoutedExperts(Protocol):
    """The weights of one layer on this rank."""

    local_num_experts: int
    global_num_experts: int
    expert_map_manager: ExpertMapManager
    moe_config: MoeConfig
    quant_method: object

    def named_parameters(self) -> Iterable[tuple[str, Parameter]]:
        """Of `torch.nn.Module`."""
        ...

    def get_expert_weights(self) -> Iterable[Tensor]:
        """Views `[local slots, -1]` of what the kernels read."""
        ...


class MoeLayer(Protocol):
    """`MoERunner`."""

    layer_name: str
    routed_experts: RoutedExperts
    eplb_state: LayerState | None
    is_monolithic: bool
    do_naive_dispatch_combine: bool


class MoeModel(Protocol):
    """`MixtureOfExperts`."""

    num_moe_layers: int
    num_logical_experts: int
    num_physical_experts: int
    num_local_physical_experts: int
    moe_layers: Sequence[MoeLayer]

    def set_eplb_state(
        self,
        expert_load_view: Tensor,
        logical_to_physical_map: Tensor,
        logical_replica_count: Tensor,
    ) -> None:
        """Give every layer its part of these."""
        ...


class EplbConfig(Protocol):
    """`EPLBConfig`."""

    num_redundant_experts: int


class ParallelConfig(Protocol):
    """`ParallelConfig`."""

    enable_expert_parallel: bool
    enable_eplb: bool
    enable_elastic_ep: bool
    eplb_config: EplbConfig
    num_ubatches: int
    pipeline_parallel_size: int
    prefill_context_parallel_size: int
    tensor_parallel_size: int
    data_parallel_size: int
    data_parallel_rank: int
    distributed_executor_backend: object


class ModelConfig(Protocol):
    """`ModelConfig`."""

    model: str
    served_model_name: str | list[str] | None


class VllmConfig(Protocol):
    """`VllmConfig`."""

    parallel_config: ParallelConfig
    model_config: ModelConfig
    lora_config: object | None


class Runner(Protocol):
    """`GPUModelRunner`, of either generation, and what derives from it."""

    eplb_state: State | None
    _moe_model: MoeModel | None
    parallel_config: ParallelConfig

    def get_model(self) -> Module:
        """Return the loaded model."""
        ...

    def eplb_step(self) -> None:
        """Tell the engine's own balancer that a forward is over."""
        ...


class Worker(Protocol):
    """`WorkerBase`."""

    rank: int
    vllm_config: VllmConfig
    model_runner: Runner

    def get_model(self) -> Module:
        """Return the loaded model."""
        ...


class SchedulerOutput(Protocol):
    """What one step of the engine runs."""

    total_num_scheduled_tokens: int
    num_scheduled_tokens: Mapping[str, int]
    scheduled_new_reqs: Sequence[object]
    scheduled_spec_decode_tokens: Mapping[str, object]


class Group(Protocol):
    """`GroupCoordinator` of the EP ranks."""

    rank_in_group: int
    world_size: int
    ranks: Sequence[int]
