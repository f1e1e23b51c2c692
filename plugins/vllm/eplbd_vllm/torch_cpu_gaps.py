"""What vLLM's CPU build lacks for expert parallelism, so that a real engine can be tested.

Nothing of this runs on a device. Each gap is probed before it is filled: a release that closes one
is left alone there, and never maps twice. Found in 0.32.0:

configuration   `--enable-eplb` is refused on a CPU, though nothing but the router needs a device
router          the choice of a replica is a stub that returns its input
experts         the unquantised kernel ignores `expert_map` and reads beyond its buffers
collectives     the communicator has neither `all_gatherv` nor `reduce_scatterv`, which dispatch
                between data-parallel ranks needs
runner          it loads the model without making the EPLB state that the routers read

Upstream has the third and fourth under review as pull request 47778. Owns these patches alone. It
must not know eplbd's agent: an engine with its gaps filled serves without a daemon as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from eplbd_vllm.selection import map_and_record
from eplbd_vllm.upstream import ModelState, MoeModel, ParallelConfig, Worker

WIDTH = 1024
"""Replicas that a row of the engine's own table has room for."""


def fill() -> list[str]:
    """Fill every gap that is there, before the engine reads its configuration; name them."""
    gaps = {
        "configuration": _fill_configuration,
        "router": _fill_router,
        "experts": _fill_experts,
        "collectives": _fill_collectives,
    }
    return [name for name, fill_one in gaps.items() if fill_one()]


# --- configuration ------------------------------------------------------------------------------


class _EplbCapable:
    """The platform, as the module that checks the configuration sees it."""

    def __init__(self, platform: object) -> None:
        self._platform = platform

    def is_cuda_alike(self) -> bool:
        """Asked there about EPLB alone."""
        return True

    def __getattr__(self, name: str) -> object:
        return getattr(self._platform, name)


def _fill_configuration() -> bool:
    import vllm.config.parallel as module

    asked = inspect.getsource(module).count("is_cuda_alike()")
    if asked != 1 or isinstance(module.current_platform, _EplbCapable):
        return False
    module.current_platform = _EplbCapable(module.current_platform)
    return True


# --- router -------------------------------------------------------------------------------------


def _fill_router() -> bool:
    import vllm.model_executor.layers.fused_moe.router.base_router as module

    if not _is_stub(module.eplb_map_to_physical_and_record):
        return False
    module.eplb_map_to_physical_and_record = map_and_record
    return True


def deal(offset: int, turn: Tensor | None) -> None:
    """Have the filled router choose with these, see `map_and_record`; an engine's own stays."""
    import vllm.model_executor.layers.fused_moe.router.base_router as module

    found = module.eplb_map_to_physical_and_record
    if getattr(found, "func", found) is map_and_record:
        module.eplb_map_to_physical_and_record = partial(map_and_record, offset=offset, turn=turn)


def _is_stub(function: Callable[..., Tensor]) -> bool:
    """Whether two experts that have changed places are still found where they were."""
    ids = torch.tensor([[0, 1]], dtype=torch.int32)
    moved = function(
        topk_ids=ids,
        expert_load_view=torch.zeros(2, dtype=torch.int32),
        logical_to_physical_map=torch.tensor([[1], [0]]),
        logical_replica_count=torch.tensor([1, 1]),
        record_enabled=torch.ones((), dtype=torch.bool),
    )
    return torch.equal(moved, ids)


# --- experts ------------------------------------------------------------------------------------


def _fill_experts() -> bool:
    import vllm.model_executor.layers.fused_moe.experts.cpu_moe as module

    kernel = module.CPUUnquantizedExperts
    original = kernel.apply
    if inspect.getsource(original).count("expert_map") != 1:
        return False  # more than its own parameter: it is made use of

    @wraps(original)
    def apply(self: object, *args: object, **kwargs: object) -> None:
        bound = inspect.signature(original).bind(self, *args, **kwargs).arguments
        expert_map: Tensor | None = bound["expert_map"]
        if expert_map is not None:
            local = expert_map[bound["topk_ids"].long()]
            elsewhere = local < 0
            # An expert of another rank: any of ours, with no weight in the sum.
            bound["topk_ids"] = local.masked_fill(elsewhere, 0).to(torch.int32).contiguous()
            bound["topk_weights"] = bound["topk_weights"].masked_fill(elsewhere, 0.0).contiguous()
        original(**bound)

    kernel.apply = apply
    return True


# --- collectives --------------------------------------------------------------------------------


def _fill_collectives() -> bool:
    import vllm.distributed.device_communicators.cpu_communicator as module

    communicator = module.CpuCommunicator
    if "all_gatherv" in vars(communicator) or "reduce_scatterv" in vars(communicator):
        return False
    communicator.all_gatherv = _all_gatherv
    communicator.reduce_scatterv = _reduce_scatterv
    return True


class _Communicator(Protocol):
    world_size: int
    rank_in_group: int
    device_group: dist.ProcessGroup


def _all_gatherv(
    self: _Communicator,
    input_: Tensor | list[Tensor],
    dim: int = 0,
    sizes: list[int] | None = None,
) -> Tensor | list[Tensor]:
    """Concatenate the ranks' rows, `sizes[r]` of rank r."""
    if dim != 0:
        raise NotImplementedError(f"all_gatherv along dimension {dim}: rows only")
    if isinstance(input_, list):
        return [_gather_rows(self, each, sizes) for each in input_]
    return _gather_rows(self, input_, sizes)


def _gather_rows(communicator: _Communicator, rows: Tensor, sizes: Sequence[int] | None) -> Tensor:
    sizes = sizes or [rows.shape[0]] * communicator.world_size
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded, group=communicator.device_group)
    return torch.cat([each[:size] for each, size in zip(gathered, sizes, strict=True)])


def _reduce_scatterv(
    self: _Communicator, input_: Tensor, dim: int = 0, sizes: list[int] | None = None
) -> Tensor:
    """Sum over the ranks and return this rank's rows."""
    if dim != 0:
        raise NotImplementedError(f"reduce_scatterv along dimension {dim}: rows only")
    sizes = sizes or [input_.shape[0] // self.world_size] * self.world_size
    total = input_.contiguous().clone()
    dist.all_reduce(total, group=self.device_group)
    start = sum(sizes[: self.rank_in_group])
    return total[start : start + sizes[self.rank_in_group]].clone()


# --- runner -------------------------------------------------------------------------------------


@dataclass(slots=True)
class CpuModelState:
    """See `upstream.ModelState`."""

    physical_to_logical_map: Tensor
    logical_to_physical_map: Tensor
    logical_replica_count: Tensor
    num_unpadded_tokens_tensors: list[Tensor] = field(default_factory=list)


class CpuEplbState:
    """The part of `EplbState` that routers and runners need: tables, a mask, no balancer."""

    is_async = False

    def __init__(self, name: str, model: MoeModel, parallel: ParallelConfig) -> None:
        layers, slots = model.num_moe_layers, model.num_physical_experts
        experts = model.num_logical_experts
        held = torch.arange(slots) % experts
        physical = torch.full((experts, WIDTH), -1)
        for slot, expert in enumerate(held.tolist()):
            physical[expert, slot // experts] = slot
        count = torch.bincount(held, minlength=experts)
        batches = max(1, parallel.num_ubatches)
        self._tokens = [torch.zeros((), dtype=torch.int32) for _ in range(batches)]
        state = CpuModelState(
            held.repeat(layers, 1),
            physical.repeat(layers, 1, 1),
            count.repeat(layers, 1),
            self._tokens,
        )
        self.model_states: Mapping[str, ModelState] = {name: state}
        load = torch.zeros(layers, slots, dtype=torch.int32)
        model.set_eplb_state(load, state.logical_to_physical_map, state.logical_replica_count)
        record = torch.ones((), dtype=torch.bool)
        for layer in model.moe_layers:
            if layer.eplb_state is not None:
                layer.eplb_state.should_record_tensor = record
                layer.eplb_state.num_unpadded_tokens_tensors = self._tokens

    def prepare_forward(
        self, model_config: object, num_unpadded_tokens: int, ubatch_slices: object = None
    ) -> None:
        """Tell the routers where padding begins; a CPU runs no micro-batches."""
        self._tokens[0].fill_(num_unpadded_tokens)

    def step(self, *args: object, **kwargs: object) -> None:
        """Nothing: no balancer of the engine's runs here."""


def give_state(worker: Worker, model: MoeModel) -> bool:
    """Make the EPLB state that a CPU runner left out; whether it had."""
    runner, config = worker.model_runner, worker.vllm_config
    if runner.eplb_state is not None or not config.parallel_config.enable_eplb:
        return False
    runner.eplb_state = CpuEplbState(config.model_config.model, model, config.parallel_config)
    runner._moe_model = model  # noqa: SLF001 - where runners of devices keep it, and `step` looks
    return True
