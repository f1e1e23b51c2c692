"""What has to be so before a rank of vllm-ascend V1 can be balanced, and what to do if it is not.

Owns the conditions; each is one sentence. It must not know tensors' contents, nor what follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eplbd_vllm.ascend.engine import Layer


def of_layers(layers: Sequence[Layer], dispatch: frozenset[str], redundant: int) -> str:
    """Return the first reason why these layers cannot be balanced; empty if there is none.

    dispatch: names of the engine's communication methods that its batches may take. redundant:
    slots beyond one for each expert.
    """
    return next(_of_layers(layers, dispatch, redundant), "")


def _of_layers(layers: Sequence[Layer], dispatch: frozenset[str], redundant: int) -> Iterator[str]:
    if not layers:
        yield "the model has no layers of experts: nothing to balance, remove eplbd-vllm"
        return
    first = layers[0]
    for index, layer in enumerate(layers):
        where = f"layer {index}"
        if layer.log2phy is None or layer.global_expert_map is None or not layer.dynamic_eplb:
            yield (
                f"{where} has no slots to move experts in: start the engine with dynamic_eplb and "
                "--enable-expert-parallel"
            )
        elif (
            layer.local_num_experts != first.local_num_experts
            or first.global_expert_map is None
            or layer.global_expert_map.shape != first.global_expert_map.shape
        ):
            yield (
                f"{where} has other numbers of experts or slots than layer 0: a drafter with "
                "experts of its own cannot be balanced together with the model"
            )
        if getattr(layer, "mix_placement", False):
            yield (
                f"{where} places shared experts among the routed ones, which must stay on every "
                "rank: start the engine without mix_placement"
            )
        if getattr(layer, "_ascend_moe_lora_context", None) is not None:
            yield f"{where} has LoRA adapters, which would stay behind: start the engine without"
    if redundant and "ALLGATHER" in dispatch:
        yield (
            "this engine may dispatch by all-gather, where each rank would compute its own "
            "replica of the same token's expert and outputs would be counted twice: set "
            "num_redundant_experts to 0, or batch sizes within the capacity of MC2"
        )
