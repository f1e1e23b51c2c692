"""eplbd beside one rank of vllm-ascend V1 (`dynamic_eplb`): attached, counting, detached.

Owns the agent's life in the worker's process and the retirement of the engine's own balancer. How
the engine calls it is `eplbd_vllm.hooks`' matter, what it says to the daemon is the agent's.

Made when a model was loaded: its experts are in their final tensors by then, and no graph has been
captured yet. vllm-ascend's adaptor finds the layers and what they consist of; of its buffers, a
whole layer's worth of experts, none is made.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import torch
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.distributed_c10d import _get_default_store

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError, EplbdError, TransferError
from eplbd.worker.agent import AgentThread
from eplbd.worker.torch_attach import Membership, attach
from eplbd.worker.torch_experts import ExpertTensors, Images, PlainImages
from eplbd.worker.torch_p2p import Route, TorchP2PExecutor
from eplbd_vllm.ascend import conditions
from eplbd_vllm.ascend.engine import Adaptor, Group, Runner, Worker
from eplbd_vllm.ascend.idle import retire
from eplbd_vllm.ascend.record import MapRecord
from eplbd_vllm.ascend.torch_formats import Npu, NpuImages
from eplbd_vllm.ascend.torch_heat import Heat
from eplbd_vllm.ascend.torch_maps import Maps, placement_of
from eplbd_vllm.ascend.torch_weights import DESCRIBED, check_engine_table, expert_tensors
from eplbd_vllm.door import knock
from eplbd_vllm.settings import Settings
from eplbd_vllm.torch_guest import agree
from eplbd_vllm.torch_weights import table

log = logging.getLogger("vllm.eplbd")

_ADAPTOR = "vllm_ascend.eplb.adaptor.vllm_adaptor"
_CONTEXT = "vllm_ascend.ascend_forward_context"
_GROUPS = "vllm_ascend.distributed.parallel_state"


class Guest:
    """eplbd in one worker. Every rank of the group makes one, at the same point of its start."""

    def __init__(self, worker: Worker, settings: Settings, store: Store, group: Group) -> None:
        self._worker, self._settings = worker, settings
        self._store, self._group = store, group
        self._attached = 0
        self._agent: AgentThread | None = None
        self._heat: Heat | None = None
        self._stack = ExitStack()
        self._lost = False
        self.maps: Maps | None = None
        """What the layers route by; None before the first attachment."""
        self.executor: TorchP2PExecutor | None = None
        """What moves the weights; None before the first attachment."""
        self.initial: Placement | None = None
        """Where the engine loads its weights."""

    # --- the worker's main thread, between forwards ---------------------------------------------

    def attach(self) -> str:
        """Attach; return why not, the same on every rank, empty if attached."""
        self._attached += 1
        group = self._group
        # With pipeline stages, several groups share one store.
        name = f"eplbd/ascend/{group.ranks[0]}/{self._attached}"
        store = PrefixStore(name, self._store)
        complaint = ""
        parts: tuple[Adaptor, ExpertTensors, TorchP2PExecutor] | None = None
        try:
            parts = self._parts(store)
        except (EplbdError, RuntimeError) as error:
            complaint = " ".join(str(error).split()) or type(error).__name__
        complaint = agree(store, group.rank_in_group, group.world_size, complaint)
        if complaint or parts is None:
            return complaint
        self._start(store, *parts)
        return ""

    def pause(self, *, lost: bool) -> None:
        """See `Visitor`. The agent leaves, the placement stays as it is."""
        self._lost = self._lost or lost
        self._stack.close()

    def resume(self, *, reloaded: bool) -> None:
        """See `Visitor`. Reloaded weights are where they were at first, and so are the maps."""
        if self._lost and not reloaded:
            return  # what is in the slots now is nobody's weights
        self._lost = False
        if reloaded and self.maps is not None and self.initial is not None:
            self.maps.reset(self.initial)
        reason = self.attach()
        if reason and self._group.rank_in_group == 0:
            log.warning("eplbd: the placement stays as it is from here on: %s", reason)

    def leave(self) -> None:
        """See `Visitor`."""
        self._stack.close()

    # --- around every forward -------------------------------------------------------------------

    def before_forward(self) -> None:
        """See `ForwardHook`."""
        if self._agent is not None:
            self._agent.hook.before_forward()

    def after_forward(self, tokens: int, *, dummy: bool, phase: int) -> None:
        """Account for the forward that was issued. tokens: of this rank, padding excluded."""
        agent, heat = self._agent, self._heat
        if agent is None or heat is None:
            return
        if dummy:
            heat.drop()  # tokens that nobody asked for
        else:
            heat.collect()
        agent.hook.after_forward(tokens, dummy=dummy, phase=phase)

    # --- within ---------------------------------------------------------------------------------

    def _parts(self, store: Store) -> tuple[Adaptor, ExpertTensors, TorchP2PExecutor]:
        """Everything that may be refused, before anything is changed."""
        adaptor = adaptor_of(self._worker.model_runner)
        layers = adaptor.moe_layers
        dispatch = dispatch_of(self._worker)
        reason = conditions.of_layers(layers, dispatch, _redundant(adaptor))
        if reason:
            raise ConfigError(reason)
        experts = expert_tensors(adaptor, images_here())
        placement = placement_of(adaptor)
        if (placement.ranks, placement.slots_per_rank) != (self._group.world_size, experts.slots):
            raise ConfigError(
                f"the maps are of {placement.ranks} ranks x {placement.slots_per_rank} slots, the "
                f"group has {self._group.world_size} ranks and the weights {experts.slots} slots"
            )
        executor = TorchP2PExecutor(
            experts,
            store,
            layers[0].ep_rank,
            placement.ranks,
            experts_per_rank=self._settings.experts_per_rank,
            route=self._route(experts.device),
        )
        return adaptor, experts, executor

    def _route(self, device: torch.device) -> Route:
        if self._settings.route == "auto":
            return Route.DEVICE if device.type == "cpu" else Route.HOST
        return Route(self._settings.route)

    def _start(
        self, store: Store, adaptor: Adaptor, experts: ExpertTensors, executor: TorchP2PExecutor
    ) -> None:
        """Take the engine's place as its balancer, and let the agent run."""
        runner, config = self._worker.model_runner, self._worker.vllm_config
        if self._heat is None:
            self._heat = Heat(adaptor.moe_layers)
            retire(runner, self._heat.drop)
        self._stack = ExitStack()
        self.maps = maps = Maps(
            adaptor,
            tp_size=config.parallel_config.tensor_parallel_size,
            wrote=self._recorder(runner),
        )
        self.initial = self.initial or maps.placement
        self.executor = executor
        rank, ranks = self._group.rank_in_group, self._group.world_size
        membership = Membership(
            self._settings.group or _served_name(self._worker), rank, ranks, store
        )
        self._agent = attach(
            self._stack,
            self._settings.socket,
            membership,
            maps.placement,
            executor,
            maps,
            self._heat.counters,
        )
        if rank == 0:
            self._announce(experts, executor)

    def _recorder(self, runner: Runner) -> Callable[[Placement], None]:
        path = runner.ascend_config.eplb_config.expert_map_record_path
        if path is None or self._group.rank_in_group != 0:
            return lambda _: None
        record = MapRecord(Path(path))
        self._stack.callback(record.close)
        return record.put

    def _announce(self, experts: ExpertTensors, executor: TorchP2PExecutor) -> None:
        log.info(
            "eplbd balances this engine in vllm-ascend's place: %d EP ranks, %s, %d B per expert",
            self._group.world_size,
            table(experts.describe()),
            executor.expert_bytes,
        )
        missing = knock(self._settings.socket)
        if missing:
            log.warning("eplbd: serving with the placement as it is: %s", missing)


def guest_of(worker: Worker, settings: Settings) -> Guest:
    """Return the guest of a worker, in the engine's own group for balancing."""
    group: Group = importlib.import_module(_GROUPS).get_dynamic_eplb_group()
    return Guest(worker, settings, _get_default_store(), group)


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


def _served_name(worker: Worker) -> str:
    config = worker.vllm_config.model_config
    name = config.served_model_name or config.model
    first = name if isinstance(name, str) else name[0]
    return first.rstrip("/").rpartition("/")[2] or "default"
