"""One rank of vllm-ascend V1 (`dynamic_eplb`), as a guest needs it: what moves, what is counted.

Owns the survey of the engine and the retirement of its own balancer. It must not know how long a
guest stays, nor how many times it comes (`eplbd_vllm.torch_guest`).

Made when a model was loaded: its experts are in their final tensors by then, and no graph has been
captured yet. vllm-ascend's adaptor finds the layers and what they consist of; of its buffers, a
whole layer's worth of experts, none is made.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import torch
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from eplbd.errors import ConfigError, TransferError
from eplbd.worker.torch_attach import Membership
from eplbd.worker.torch_experts import Images, PlainImages
from eplbd_vllm.ascend import conditions
from eplbd_vllm.ascend.engine import Adaptor, Group, Runner, Worker
from eplbd_vllm.ascend.idle import retire
from eplbd_vllm.ascend.record import MapRecord
from eplbd_vllm.ascend.torch_formats import Npu, NpuImages
from eplbd_vllm.ascend.torch_heat import Heat
from eplbd_vllm.ascend.torch_maps import Maps
from eplbd_vllm.ascend.torch_weights import DESCRIBED, check_engine_table, expert_tensors
from eplbd_vllm.naming import group_name
from eplbd_vllm.settings import Settings
from eplbd_vllm.torch_guest import Guest, Survey

_ADAPTOR = "vllm_ascend.eplb.adaptor.vllm_adaptor"
_CONTEXT = "vllm_ascend.ascend_forward_context"
_GROUPS = "vllm_ascend.distributed.parallel_state"


def guest_of(worker: Worker, settings: Settings) -> Guest:
    """Return the guest of a worker, in the engine's own group for balancing."""
    group: Group = importlib.import_module(_GROUPS).get_dynamic_eplb_group()
    membership = Membership(
        group_name(settings, worker.vllm_config, os.environ, group.ranks[0]),
        group.rank_in_group,
        group.world_size,
        # With pipeline stages, several groups share one store.
        PrefixStore(f"eplbd/ascend/{group.ranks[0]}", _get_default_store()),
    )
    return Guest(membership, settings, AscendV1(worker, membership).survey)


class AscendV1:
    """The engine around one rank."""

    def __init__(self, worker: Worker, member: Membership) -> None:
        self._worker, self._member = worker, member
        self._heat: Heat | None = None

    def survey(self) -> Survey:
        """See `Survey`."""
        worker, ranks = self._worker, self._member.ranks
        adaptor = adaptor_of(worker.model_runner)
        layers = adaptor.moe_layers
        reason = conditions.of_layers(layers, dispatch_of(worker), _redundant(adaptor))
        if reason:
            raise ConfigError(reason)
        experts = expert_tensors(adaptor, images_here())
        maps = Maps(adaptor, tp_size=worker.vllm_config.parallel_config.tensor_parallel_size)
        placement = maps.placement
        if (placement.ranks, placement.slots_per_rank) != (ranks, experts.slots):
            raise ConfigError(
                f"the maps are of {placement.ranks} ranks x {placement.slots_per_rank} slots, the "
                f"group has {ranks} ranks and the weights {experts.slots} slots"
            )
        heat = self._heat or Heat(layers)

        def take_over(stack: ExitStack) -> None:
            if self._heat is None:
                self._heat = heat
                heat.take(layers)
                retire(worker.model_runner, heat.drop)
            self._record(maps, stack)

        return Survey(experts, placement, maps, heat, take_over, in_place_of="vllm-ascend")

    def _record(self, maps: Maps, stack: ExitStack) -> None:
        """Keep the engine's record of maps, where it is to have one."""
        path = self._worker.model_runner.ascend_config.eplb_config.expert_map_record_path
        if path is not None and self._member.rank == 0:
            record = MapRecord(Path(path))
            stack.callback(record.close)
            maps.wrote = record.put


def adaptor_of(runner: Runner) -> Adaptor:
    """Return vllm-ascend's own adaptor of the runner's model, without its receive buffers.

    Raises TransferError where it cannot move them, or moves other tensors than are described here,
    ConfigError where it knows of layers that are no longer served (vllm-ascend issue 14720).
    """
    module = importlib.import_module(_ADAPTOR)
    check_engine_table(module.EPLB_EXPERT_WEIGHT_NAMES)

    def no_buffers(_: object, __: int) -> None:
        """Staging has its own, for as many experts as one epoch may bring."""

    kind = type("EplbdAdaptor", (module.VllmEplbAdaptor,), {"init_buffer_tensor": no_buffers})
    try:
        adaptor: Adaptor = kind(model=runner.model)
    except (AttributeError, IndexError, RuntimeError, ValueError) as error:
        # Its ways to say no: of a name that is not in its table, of a list that no loader made.
        raise TransferError(
            f"vllm-ascend itself cannot move these experts ({error}): quantisations that can be "
            f"balanced are {', '.join(sorted({name for name, _ in DESCRIBED}))}"
        ) from error
    served = {id(module) for model in _models(runner) for module in model.modules()}
    stale = sum(id(layer) not in served for layer in adaptor.moe_layers)
    if stale:
        raise ConfigError(
            f"vllm-ascend still lists {stale} layers of a model that is no longer served: restart "
            "the engine"
        )
    return adaptor


def _models(runner: Runner) -> list[torch.nn.Module]:
    drafter = getattr(runner.drafter, "model", None)
    return [runner.model, *([drafter] if isinstance(drafter, torch.nn.Module) else [])]


def dispatch_of(worker: Worker) -> frozenset[str]:
    """Names of the communication methods that the engine's smallest and largest batch take."""
    select = importlib.import_module(_CONTEXT).select_moe_comm_method
    config = worker.vllm_config
    sizes = (1, config.scheduler_config.max_num_batched_tokens)
    return frozenset(method.name for size in sizes if (method := select(size, config)) is not None)


def images_here() -> Images:
    """Return how tensors become bytes on this machine: formats exist where torch_npu is loaded."""
    npu = sys.modules.get("torch_npu")
    return PlainImages() if npu is None else NpuImages(cast("Npu", npu))


def _redundant(adaptor: Adaptor) -> int:
    maps = adaptor.get_global_expert_map()
    return int((maps[0] >= 0).sum()) - maps.shape[2] if len(maps) else 0
