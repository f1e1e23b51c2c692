"""One rank of upstream vLLM, as a guest needs it: what moves, what its routers read and count into.

Owns the survey of the engine and the retirement of its own balancer. It must not know how long a
guest stays, nor how many times it comes (`torch_guest`).
"""

from __future__ import annotations

import os
from contextlib import ExitStack

import torch
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from eplbd.core.messages import Counts, Dispatch
from eplbd.errors import ConfigError
from eplbd.worker.torch_attach import Membership
from eplbd_vllm import conditions
from eplbd_vllm.naming import group_name
from eplbd_vllm.settings import Settings
from eplbd_vllm.torch_guest import Guest, Survey
from eplbd_vllm.torch_heat import Heat
from eplbd_vllm.torch_tables import Tables
from eplbd_vllm.torch_weights import expert_tensors
from eplbd_vllm.upstream import Group, MoeModel, State, Worker


def guest_of(worker: Worker, model: MoeModel, settings: Settings, group: Group) -> Guest:
    """Return the guest of a worker whose model was loaded. group: of its EP ranks."""
    config = worker.vllm_config
    replicated = config.parallel_config.data_parallel_size == 1
    membership = Membership(
        group_name(settings, config, os.environ, group.ranks[0]),
        group.rank_in_group,
        group.world_size,
        # Of the world, which is the EP group where there are no pipeline stages.
        PrefixStore("eplbd/vllm", _get_default_store()),
        Dispatch.REPLICATED if replicated else Dispatch.ALL_TO_ALL,
        weighted=True,
        counts=Counts.SENT,
    )
    return Guest(membership, settings, Upstream(worker, model, membership).survey)


class Upstream:
    """The engine around one rank."""

    def __init__(self, worker: Worker, model: MoeModel, member: Membership) -> None:
        self._worker, self._model, self._member = worker, model, member
        self._heat: Heat | None = None

    def survey(self) -> Survey:
        """See `Survey`."""
        runner, model = self._worker.model_runner, self._model
        reason = conditions.of_layers(model, runner)
        if reason:
            raise ConfigError(reason)
        experts = expert_tensors(list(model.moe_layers))
        if experts.slots != model.num_local_physical_experts:
            raise ConfigError(
                f"the weights have {experts.slots} slots on this rank, vLLM announces "
                f"{model.num_local_physical_experts}"
            )
        state: State | None = runner.eplb_state
        assert state is not None  # noqa: S101 - of_layers
        tables = Tables(next(iter(state.model_states.values())))
        heat = self._heat = self._heat or Heat(
            model.num_moe_layers, model.num_physical_experts, experts.device
        )

        def take_over(stack: ExitStack) -> None:
            retire(state)
            heat.take(model.moe_layers)
            stack.callback(self._record, on=False)
            self._record(on=self._reports())
            if experts.device.type == "cpu":
                self._deal(stack, heat)

        return Survey(experts, tables.placement(self._member.ranks), tables, heat, take_over)

    def _reports(self) -> bool:
        """Whether this rank's tokens are counted by it alone."""
        replicated = self._member.dispatch is Dispatch.REPLICATED
        return replicated or self._member.rank % self._sharers() == 0

    def _sharers(self) -> int:
        """How many neighbouring ranks route the same tokens, where not all do."""
        split = self._model.moe_layers[0].routed_experts.moe_config.is_sequence_parallel
        return 1 if split else self._worker.vllm_config.parallel_config.tensor_parallel_size

    def _deal(self, stack: ExitStack, heat: Heat) -> None:
        """Let ranks with tokens of their own not all begin at the same replica of an expert."""
        from eplbd_vllm import torch_cpu_gaps

        if self._member.dispatch is Dispatch.REPLICATED:
            return  # one routing, which all repeat: they have to choose alike
        sharers = self._sharers()
        offset = self._member.rank // sharers
        # What sharers choose by may not depend on whether a neighbour's agent is well.
        torch_cpu_gaps.deal(offset, heat.forwards if sharers == 1 else None)
        stack.callback(torch_cpu_gaps.deal, offset, None)

    def _record(self, *, on: bool) -> None:
        """Let the routers count, or not; a captured graph looks at this flag, too."""
        for layer in self._model.moe_layers:
            state = layer.eplb_state
            if state is not None and state.should_record_tensor is not None:
                state.should_record_tensor.fill_(on)


def retire(state: State) -> None:
    """Switch the engine's own balancer off: two controllers of one placement is an error.

    Its thread, where it has one, waits for an order that never comes. What it kept of the past is
    given back: 67 MB for 58 layers of 288 slots.
    """

    def step(*args: object, **kwargs: object) -> None:
        """Nothing: eplbd is the balancer now."""

    state.step = step  # type: ignore[attr-defined]  # called by name, looked up on the instance
    for model_state in state.model_states.values():
        if hasattr(model_state, "expert_load_window"):
            model_state.expert_load_window = torch.empty(0)
