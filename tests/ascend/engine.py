"""A worker of vllm-ascend V1 on CPU: its own layers, quantisation methods, maps and adaptor.

Only for a process in which `stubs` are installed. Of the engine's own sources are the layers
(`AscendFusedMoE` with its maps, counters and forward), the methods that bring weights into their
final tensors, and everything in `vllm_ascend.eplb`. Made up are what is in the weights, and who
sends which tokens where.
"""

from __future__ import annotations

import importlib
import zlib
from types import SimpleNamespace as Given
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.ascend import stubs
from tests.ascend.control import Case, Setting

LAYERS, EXPERTS, HIDDEN, SIZE, TOPK, TOKENS = 2, 8, 32, 16, 2, 64
RESTLESS = 40
"""Forwards: a little more than the window of `tests.chaos.lab.QUICK`."""


Foreign = Any
"""Of vllm-ascend, which brings its own types, or a stand-in for something of vLLM."""


def load(module: str) -> Foreign:
    """A module of vllm-ascend."""
    return importlib.import_module(f"vllm_ascend.{module}")


class Engine:
    """One rank's layers, and a runner and a worker around them."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.case = setting, setting.case
        self.rank, self.ranks = setting.rank, setting.ranks
        stubs.CURRENT.group = Given(
            rank_in_group=self.rank,
            world_size=self.ranks,
            ranks=[*range(self.ranks)],
            local_rank=self.rank,
            device_group=None,
        )
        stubs.CURRENT.config = self.config = _vllm_config(self.case, self.ranks)
        self.ascend = _configure(self.case, setting.record)
        self.layers = [self._layer(index) for index in range(LAYERS)]
        self.reference = [self._reference(index) for index in range(LAYERS)]
        self.model = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList(self.layers)
        vars(self.model)["config"] = Given()
        vars(self.model)["quant_config"] = self.config.quant_config
        self.worker = Given(rank=self.rank, vllm_config=self.config, model_runner=self._runner())
        self.forwards = 0

    # --- made of the engine's sources -----------------------------------------------------------

    def _layer(self, index: int) -> Foreign:
        moe = load("ops.fused_moe.fused_moe_0_23_0")
        moe.setup_moe_comm_method = moe.enable_sp = lambda *_: False
        upstream = self._upstream(index)
        layer = moe.AscendFusedMoE(num_experts=EXPERTS, intermediate_size=SIZE, upstream=upstream)
        held = torch.argsort(layer.global_expert_map[self.rank], stable=True).tolist()
        fill(layer, index, held[EXPERTS - layer.local_num_experts :])
        self._finish(layer.quant_method, layer, layer.local_num_experts)
        layer.quant_method.apply = lambda **given: self._routed(index, **given)
        return layer

    def _upstream(self, index: int) -> dict[str, object]:
        """What vLLM's part of a layer holds."""
        config = Given(
            num_experts=EXPERTS,
            ep_size=self.ranks,
            ep_rank=self.rank,
            has_bias=self.case.bias,
            in_dtype=torch.bfloat16,
        )
        return {
            "moe_config": config,
            "quant_config": self.config.quant_config,
            "layer_name": f"model.layers.{index}.mlp.experts",
            "vllm_config": self.config,
            "ep_size": self.ranks,
            "ep_rank": self.rank,
            "hidden_size": HIDDEN,
            "intermediate_size_per_partition": SIZE,
            "params_dtype": torch.bfloat16,
            "expert_map_manager": Given(),
            "topk_group": None,
            **dict.fromkeys(("custom_routing_function", "e_score_correction_bias"), None),
            **dict.fromkeys(("router", "num_expert_group", "weight_loader"), None),
            **dict.fromkeys(("renormalize", "use_grouped_topk"), False),
            "apply_router_weight_on_input": False,
            "scoring_func": "softmax",
            "activation": "silu",
            "top_k": TOPK,
        }

    def _reference(self, index: int) -> torch.nn.Module:
        """All experts of a layer, in the order of their numbers, made by the same sources."""
        module = torch.nn.Module()
        method = self.layers[index].quant_method
        method.create_weights(
            layer=module,
            num_experts=EXPERTS,
            hidden_size=HIDDEN,
            intermediate_size_per_partition=SIZE,
            params_dtype=torch.bfloat16,
        )
        fill(module, index, [*range(EXPERTS)])
        self._finish(method, module, EXPERTS)
        return module

    def _finish(self, method: Foreign, module: torch.nn.Module, slots: int) -> None:
        method.process_weights_after_loading(module)
        if self.case.private:
            # What was cleft from a tensor in a private format is in that format: here, a class.
            for name in ("w13_weight_list", "w2_weight_list"):
                pieces = [each.as_subclass(stubs.FractalNz) for each in getattr(module, name)]
                setattr(module, name, pieces)
        if self.case.bias:
            for name, width in (("w13_bias", 2 * SIZE), ("w2_bias", HIDDEN)):
                bias = torch.empty(slots, width)
                module.register_parameter(name, torch.nn.Parameter(bias, requires_grad=False))

    def _runner(self) -> Foreign:
        """As `NPUModelRunner.__init__` and its loading leave it."""
        from multiprocessing import Manager

        parallel = load("distributed.parallel_state")
        parallel._DYNAMIC_EPLB = stubs.CURRENT.group  # noqa: SLF001 - where the engine keeps it
        config = self.ascend.eplb_config
        manager = Manager()
        process = load("eplb.core.eplb_worker").EplbProcess(
            shared_dict=manager.dict({"moe_load": None, "expert_maps": None}),
            policy_type=config.eplb_policy_type,
            enable_d2d=True,
            tp_size=self.case.tp_size,
        )
        loader = load("eplb.core.eplb_device_transfer_loader").D2DExpertWeightLoader()
        child = process._launch_process()  # noqa: SLF001 - as the runner does
        updator = load("eplb.eplb_updator").EplbUpdator(config, loader, process, child)
        self.children = [child, manager._process]  # type: ignore[attr-defined]  # noqa: SLF001
        return Given(
            model=self.model,
            drafter=None,
            dynamic_eplb=True,
            is_eplb_warmuped=False,
            eplb_updator=updator,
            eplb_heat_collection_stage=config.eplb_heat_collection_stage,
            eplb_heat_collection_status=False,
            manager=manager,
            ascend_config=self.ascend,
        )

    # --- made up --------------------------------------------------------------------------------

    def forward(self) -> None:
        """One step of all layers, through the layers' own forward."""
        self.forwards += 1
        hidden = torch.zeros(TOKENS, HIDDEN)
        for layer in self.layers:
            layer.forward_impl(hidden, torch.zeros(TOKENS, EXPERTS))

    def _routed(self, index: int, *, log2phy: Tensor, **_: object) -> object:
        """Tokens go where the layer's map says; what arrives is counted, as a dispatch would.

        Two experts take most of the tokens, others whenever the leader's window has filled, so that
        no placement is good for long.
        """
        layer = self.layers[index]
        hot = (self.forwards // RESTLESS * 3 + index) % EXPERTS
        step = torch.arange(TOKENS) + self.forwards
        chosen = torch.stack([step % EXPERTS, (step * 5 + 3) % EXPERTS], dim=1)
        chosen[: TOKENS // 2, 0] = hot
        chosen[: TOKENS // 3, 1] = (hot + 1) % EXPERTS
        slots = log2phy[chosen].flatten()
        sent = torch.bincount(slots.long(), minlength=self.ranks * layer.local_num_experts)
        dist.all_reduce(sent)
        received = sent.view(self.ranks, -1)[self.rank]
        counts = index % 2 == 0
        tokens = received if counts else received.cumsum(0)
        return Given(
            expert_tokens=tokens,
            group_list_type=int(counts),
            routed_out=torch.zeros(TOKENS, HIDDEN),
        )


def fill(module: torch.nn.Module, layer: int, experts: list[int]) -> None:
    """Give each slot its expert's checkpoint: a function of layer, expert and name."""
    for name, parameter in module.named_parameters(recurse=False):
        for slot, expert in enumerate(experts):
            source = torch.Generator().manual_seed(zlib.crc32(f"{layer} {expert} {name}".encode()))
            tensor = parameter.data[slot]
            if tensor.dtype.is_floating_point:
                tensor.uniform_(0.5, 1.5, generator=source)
            else:
                tensor.random_(-8, 8, generator=source)


def _vllm_config(case: Case, ranks: int) -> Foreign:
    description = {"group_size": case.group_size, "version": case.version}
    quantisation = None
    if case.scheme:
        quantisation = Given(quant_description=description, get_quant_method=_method(case.scheme))
    text = Given(to_dict=lambda: {"num_experts": EXPERTS}, num_experts_per_tok=TOPK)
    return Given(
        quant_config=quantisation,
        compilation_config=Given(mode=0),
        speculative_config=None,
        model_config=Given(
            model="/models/tiny",
            served_model_name=None,
            dtype=torch.bfloat16,
            enforce_eager=True,
            is_deepseek_mla=True,
            hf_config=Given(),
            hf_text_config=text,
            get_num_experts=lambda: EXPERTS,
        ),
        parallel_config=Given(
            tensor_parallel_size=case.tp_size,
            pipeline_parallel_size=1,
            data_parallel_rank=0,
            enable_expert_parallel=True,
            enable_dbo=False,
            world_size_across_dp=ranks,
        ),
        scheduler_config=Given(max_num_batched_tokens=TOKENS),
    )


def _method(scheme: str) -> Foreign:
    def get(layer: Foreign, _: str, tid2eid: object = None) -> Foreign:
        kind = load("quantization.methods.registry").get_scheme_class(scheme, "moe")
        adapter = load("quantization.method_adapters").AscendFusedMoEMethod
        return adapter(kind(), layer.moe_config, tid2eid)

    return get


def _configure(case: Case, record: str | None) -> Foreign:
    settings = load("ascend_config")
    eplb: dict[str, object] = {"dynamic_eplb": True, "num_redundant_experts": case.redundant}
    if record is not None:
        eplb["expert_map_record_path"] = record
    ascend = Given(
        eplb_config=settings.EplbConfig(eplb),
        enable_fused_mc2=case.fused_mc2,
        weight_nz_mode=1 if case.private else 0,
        ascend_compilation_config=Given(enable_static_kernel=False),
        **dict.fromkeys(("multistream_overlap_gate", "multistream_overlap_shared_expert"), False),
        **dict.fromkeys(("enable_shared_expert_dp", "mix_placement"), False),
    )
    settings._ASCEND_CONFIG = ascend  # noqa: SLF001 - where the engine keeps it
    context = load("ascend_forward_context")
    context._mc2_tokens_capacity = 0 if case.dispatch == "ALLTOALL" else 1 << 20  # noqa: SLF001
    devices = load("utils").AscendDeviceType
    device = devices.A2 if case.dispatch == "ALLGATHER" else devices.A3
    load("utils")._ascend_device_type = device  # noqa: SLF001
    load("eplb.adaptor.vllm_adaptor").VllmEplbAdaptor._registered_moe_layers = []  # noqa: SLF001
    load("distributed.parallel_state")._MC2 = stubs.CURRENT.group  # noqa: SLF001
    stubs.CONTEXT.moe_comm_type = context.MoECommType.MC2
    stubs.CONTEXT.moe_comm_method = Given(prepare=_prepare, finalize=_finalize)
    return ascend


def _prepare(hidden_states: Tensor, router_logits: Tensor, **_: object) -> Foreign:
    return Given(
        hidden_states=hidden_states,
        router_logits=router_logits,
        **dict.fromkeys(("mc2_mask", "padded_hidden_states_shape", "pertoken_scale"), None),
    )


def _finalize(hidden_states: Tensor, **_: object) -> Tensor:
    return hidden_states
