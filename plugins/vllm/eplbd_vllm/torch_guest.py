"""eplbd beside one rank of a running vLLM: attached, counting, detached, attached again.

Owns the life of the agent in the worker's process, and the agreement of the ranks that all attach
or none. It must not know how the engine calls it (`hooks`), nor the protocol.

Once an agent was started its hook is called around every forward, also after it has left: an epoch
that was decided flips at its forward whether or not anybody is there to tell.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.distributed_c10d import _get_default_store

from eplbd.core.messages import Counts, Dispatch
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError, EplbdError
from eplbd.worker.agent import AgentThread
from eplbd.worker.torch_attach import RENDEZVOUS_S, Membership, attach
from eplbd.worker.torch_p2p import Route, TorchP2PExecutor
from eplbd.worker.torch_ring import TorchCounters
from eplbd.worker.torch_store import own_client
from eplbd_vllm import conditions
from eplbd_vllm.door import knock
from eplbd_vllm.settings import Settings
from eplbd_vllm.torch_tables import Tables
from eplbd_vllm.torch_weights import expert_tensors, table
from eplbd_vllm.upstream import Group, MoeModel, State, Worker

log = logging.getLogger("vllm.eplbd")


@dataclass(frozen=True, slots=True)
class Seat:
    """This rank's place. reports: whether its tokens are counted by it alone."""

    rank: int
    ranks: int
    store: Store
    dispatch: Dispatch
    reports: bool


class Guest:
    """eplbd in one worker. Made when a model was loaded; ConfigError or TransferError say why not.

    Every rank of the EP group makes one, at the same point of its start.
    """

    def __init__(self, worker: Worker, model: MoeModel, settings: Settings, group: Group) -> None:
        self._worker, self._model, self._settings = worker, model, settings
        # Of the world, which is the EP group where there are no pipeline stages.
        self._store: Store = _get_default_store()
        self._group = group
        self._attached = 0
        self._agent: AgentThread | None = None
        self._executor: TorchP2PExecutor | None = None
        self._stack = ExitStack()
        self._counters: TorchCounters | None = None
        self._routed: Tensor | None = None
        self._tables: Tables | None = None
        self._initial: Placement | None = None
        self._last: Placement | None = None
        self._lost = False

    @property
    def commits(self) -> int:
        """Epochs put in force on this rank since it attached."""
        return 0 if self._executor is None else self._executor.statistics().commits

    @property
    def forwards(self) -> int:
        """The shared clock."""
        return 0 if self._agent is None else self._agent.hook.forward

    # --- the worker's main thread, between forwards ---------------------------------------------

    def attach(self) -> str:
        """Attach; return why not, the same on every rank, empty if attached."""
        self._attached += 1
        group = self._group
        store = PrefixStore(f"eplbd/vllm/{self._attached}", self._store)
        complaint = ""
        parts: tuple[Seat, TorchP2PExecutor, Tables, str] | None = None
        try:
            parts = self._parts(store)
        except (EplbdError, RuntimeError) as error:
            complaint = " ".join(str(error).split())
        complaint = agree(store, group.rank_in_group, group.world_size, complaint)
        if complaint or parts is None:
            return complaint
        seat, executor, tables, listed = parts
        self._start(seat, executor, tables)
        if seat.rank == 0:
            self._announce(seat, listed)
        return ""

    def pause(self, *, lost: bool) -> None:
        """See `Visitor`. The agent leaves, the placement stays as it is."""
        self._lost = self._lost or lost
        self._record(on=False)
        self._stack.close()
        if self._agent is not None:
            # All ranks pause between the same two forwards: a flip that was to come comes on none.
            self._last, self._agent = self._agent.machine.placement, None

    def resume(self, *, reloaded: bool) -> None:
        """See `Visitor`."""
        if self._lost and not reloaded:
            return  # what is in the slots now is nobody's weights
        if reloaded and self._tables is not None and self._initial is not None:
            self._tables.reset(self._initial)
            self._last = None
        self._lost = False
        try:
            reason = self.attach()
        except (EplbdError, RuntimeError) as error:
            reason = " ".join(str(error).split())
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
        agent, counters = self._agent, self._counters
        if agent is None or counters is None or self._routed is None:
            return
        if dummy:
            counters.drop()  # tokens that nobody asked for
        else:
            torch.sum(counters.pass_counts, dim=(0, 1), out=self._routed)
        agent.hook.after_forward(tokens, dummy=dummy, phase=phase)

    # --- within ---------------------------------------------------------------------------------

    def _parts(self, store: Store) -> tuple[Seat, TorchP2PExecutor, Tables, str]:
        """Everything that may be refused, before anything is changed."""
        worker, model = self._worker, self._model
        parallel = worker.vllm_config.parallel_config
        reason = conditions.of_layers(model, worker.model_runner)
        if reason:
            raise ConfigError(reason)
        experts = expert_tensors(list(model.moe_layers))
        if experts.slots != model.num_local_physical_experts:
            raise ConfigError(
                f"the weights have {experts.slots} slots on this rank, vLLM announces "
                f"{model.num_local_physical_experts}"
            )
        rank, ranks = self._group.rank_in_group, self._group.world_size
        replicated = parallel.data_parallel_size == 1
        split = model.moe_layers[0].routed_experts.moe_config.is_sequence_parallel
        reports = replicated or split or rank % parallel.tensor_parallel_size == 0
        dispatch = Dispatch.REPLICATED if replicated else Dispatch.ALL_TO_ALL
        route = self._route(experts.device)
        executor = TorchP2PExecutor(
            experts,
            store,
            rank,
            ranks,
            experts_per_rank=self._settings.experts_per_rank,
            route=route,
        )
        state: State | None = worker.model_runner.eplb_state
        assert state is not None  # noqa: S101 - of_layers
        tables = Tables(next(iter(state.model_states.values())))
        if self._counters is None:
            self._counters = TorchCounters(
                model.num_moe_layers, model.num_physical_experts, device=experts.device
            )
        return (
            Seat(rank, ranks, store, dispatch, reports),
            executor,
            tables,
            f"{table(experts.describe())}, {executor.expert_bytes} B per expert, route {route}",
        )

    def _route(self, device: torch.device) -> Route:
        if self._settings.route == "auto":
            return Route.DEVICE if device.type == "cpu" else Route.HOST
        return Route(self._settings.route)

    def _start(self, seat: Seat, executor: TorchP2PExecutor, tables: Tables) -> None:
        """Take the engine's place as its balancer, and let the agent run."""
        counters = self._counters
        assert counters is not None  # noqa: S101 - made with the parts
        placement = self._in_force(tables, seat.ranks)
        membership = Membership(
            self._settings.group or _served_name(self._worker),
            seat.rank,
            seat.ranks,
            seat.store,
            seat.dispatch,
            weighted=True,
            counts=Counts.SENT,
        )
        counters.drop()
        self._stack = ExitStack()
        self._agent = attach(
            self._stack, self._settings.socket, membership, placement, executor, tables, counters
        )
        retire(self._worker.model_runner.eplb_state)
        for layer, row in zip(self._model.moe_layers, counters.pass_counts, strict=True):
            state = layer.eplb_state
            assert state is not None  # noqa: S101 - of_layers
            state.expert_load_view = row
        self._record(on=seat.reports)
        self._routed = counters.pass_routed[0]
        self._tables, self._executor = tables, executor
        self._initial = self._initial or placement

    def _in_force(self, tables: Tables, ranks: int) -> Placement:
        """What the tables hold; of its shares they say nothing, but the agent before knew."""
        held, last = tables.placement(ranks), self._last
        if last is not None and np.array_equal(last.slots, held.slots):
            return last
        return held

    def _record(self, *, on: bool) -> None:
        """Let the routers count, or not; a captured graph looks at this flag, too."""
        for layer in self._model.moe_layers:
            state = layer.eplb_state
            if state is not None and state.should_record_tensor is not None:
                state.should_record_tensor.fill_(on)

    def _announce(self, seat: Seat, listed: str) -> None:
        log.info(
            "eplbd balances this engine: %d EP ranks, %s dispatch, %s",
            seat.ranks,
            seat.dispatch,
            listed,
        )
        missing = knock(self._settings.socket)
        if missing:
            log.warning("eplbd: serving with the placement as it is: %s", missing)


def agree(store: Store, rank: int, ranks: int, complaint: str) -> str:
    """Tell the others whether this rank can attach; return why the group does not, if it does not.

    Over the store and with a deadline rather than by a collective: a rank on which the plugin is
    disabled never comes, and the engine must start all the same.
    """
    try:
        client = own_client(store, RENDEZVOUS_S)
        client.set(f"rank{rank}", complaint or "ready")
        for other in range(ranks):
            said = client.get(f"rank{other}").decode()
            if said != "ready":
                return said if other == rank else f"rank {other}: {said}"
    except RuntimeError as error:
        if complaint:
            return complaint
        return (
            f"not every rank came to attach within {RENDEZVOUS_S} s; is the plugin enabled on "
            f"all of them? ({' '.join(str(error).split())[:200]})"
        )
    return ""


def retire(state: State | None) -> None:
    """Switch the engine's own balancer off: two controllers of one placement is an error.

    Its thread, where it has one, waits for an order that never comes. What it kept of the past is
    given back: 67 MB for 58 layers of 288 slots.
    """

    def step(*args: object, **kwargs: object) -> None:
        """Nothing: eplbd is the balancer now."""

    if state is None:
        return
    state.step = step  # type: ignore[attr-defined]  # called by name, looked up on the instance
    for model_state in state.model_states.values():
        if hasattr(model_state, "expert_load_window"):
            model_state.expert_load_window = torch.empty(0)


def _served_name(worker: Worker) -> str:
    config = worker.vllm_config.model_config
    name = config.served_model_name or config.model
    first = name if isinstance(name, str) else name[0]
    return first.rstrip("/").rpartition("/")[2] or "default"
