"""What has to be so before a rank can be balanced, and the sentence that says what is not.

Owns the conditions that the engine's configuration and its layers' own descriptions decide. Each
is one sentence: what is wrong, and what to do. It must not know tensors, nor what follows.
"""

from __future__ import annotations

from collections.abc import Iterator

from eplbd_vllm.upstream import VERIFIED, MoeModel, Runner, VllmConfig

UNVERIFIED = "EPLBD_UNVERIFIED"
"""Set to 1 to try with a release of vLLM that no test ran."""


def of_release(version: str, *, unverified: bool) -> str:
    """Return why this release of vLLM is refused; empty if it is not."""
    if version.startswith(VERIFIED) or unverified:
        return ""
    known = ", ".join(f"{prefix}x" for prefix in VERIFIED)
    return (
        f"vLLM {version} is not among the releases that this adapter was tried with ({known}): "
        f"upgrade eplbd-vllm, or set {UNVERIFIED}=1 and run the check in its README"
    )


def of_configuration(config: VllmConfig, model: MoeModel | None) -> str:
    """Return the first reason why this engine cannot be balanced; empty if there is none."""
    return next(_of_configuration(config, model), "")


def _of_configuration(config: VllmConfig, model: MoeModel | None) -> Iterator[str]:
    parallel = config.parallel_config
    name = config.model_config.model
    if model is None or not model.num_moe_layers:
        yield f"{name} has no layers of experts: nothing to balance, remove eplbd-vllm or ignore it"
        return
    if not parallel.enable_expert_parallel:
        yield (
            "expert parallelism is off, every rank has a part of every expert: start vLLM with "
            "--enable-expert-parallel --enable-eplb"
        )
    if not parallel.enable_eplb:
        yield (
            "vLLM has no slots to move experts in: start it with --enable-eplb, and "
            "--eplb-config.num_redundant_experts N for replicas"
        )
    if parallel.tensor_parallel_size * parallel.data_parallel_size == 1:
        yield "there is one EP rank: nothing to balance between"
    if parallel.pipeline_parallel_size > 1:
        yield "pipeline stages are not supported: start vLLM with --pipeline-parallel-size 1"
    if parallel.prefill_context_parallel_size > 1:
        yield "prefill context parallelism is not supported: start vLLM without it"
    if parallel.enable_elastic_ep:
        yield "elastic expert parallelism is not supported: start vLLM without --enable-elastic-ep"
    if config.lora_config is not None:
        yield "LoRA adapters on experts would stay behind when one moves: start vLLM without LoRA"


def of_layers(model: MoeModel, runner: Runner) -> str:
    """Return the first reason why these layers cannot be balanced; empty if there is none."""
    return next(_of_layers(model, runner), "")


def _of_layers(model: MoeModel, runner: Runner) -> Iterator[str]:
    if len(model.moe_layers) != model.num_moe_layers:
        yield f"the model announces {model.num_moe_layers} layers, {len(model.moe_layers)} are here"
    state = runner.eplb_state
    if state is None or not state.model_states:
        yield "vLLM made no EPLB state for this model: does its architecture support EPLB?"
    elif len(state.model_states) > 1:
        yield "a drafter with experts shares the EPLB state: start vLLM without that drafter"
    for layer in model.moe_layers:
        experts = layer.routed_experts
        where = f"layer {layer.layer_name}"
        if layer.eplb_state is None:
            yield f"{where} has no EPLB state: its quantisation or its model supports none"
        if layer.is_monolithic:
            yield f"{where} routes inside its kernel, past every map: choose another MoE backend"
        if layer.do_naive_dispatch_combine:
            yield (
                f"{where} gathers tokens before it routes, so every rank counts every other's "
                "tokens: choose another MoE backend"
            )
        strategy = experts.expert_map_manager.placement_strategy
        if strategy != "linear":
            yield f"{where} deals slots out {strategy}: set --expert-placement-strategy linear"
        if experts.global_num_experts != model.num_physical_experts:
            yield (
                f"{where} has {experts.global_num_experts} slots, the model "
                f"{model.num_physical_experts}: shared experts fused among the routed ones cannot "
                "move"
            )
