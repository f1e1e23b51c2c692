"""The tensors that an expert consists of in vllm-ascend, per quantisation, and nothing overlooked.

Owns which quantisations are described, and the names of what moves with an expert in each. The
engine's own table is held against this one: where an upgrade moves other tensors than were known
here, that is a refusal. Whether what was found can travel as bytes is `ExpertTensors`' judgement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from eplbd.errors import TransferError
from eplbd.worker.torch_experts import ExpertTensors, Images, SlotTensors
from eplbd_vllm.ascend.engine import Adaptor, ExpertWeightKey, Layer
from eplbd_vllm.ascend.torch_formats import NpuImages, memory_of

_LISTS = ("w13_weight_list", "w2_weight_list")
_W8A8 = (*_LISTS, "w13_weight_scale_fp32_list", "w2_weight_scale_list")
_W4A8 = (
    *_LISTS,
    "w13_weight_scale_list",
    "w2_weight_scale_list",
    "w13_scale_bias_list",
    "w2_scale_bias_list",
)
_MXFP = ("w13_weight", "w2_weight", "w13_weight_scale", "w2_weight_scale")

DESCRIBED: Mapping[tuple[str, bool], tuple[str, ...]] = {
    ("NONE", False): ("w13_weight", "w2_weight"),
    ("NONE", True): _LISTS,
    ("W8A8", False): _W8A8,
    ("W8A8", True): (*_W8A8, "fused_w1_scale_list", "fused_w2_scale_list"),
    ("W4A8", True): _W4A8,
    ("W4A8", False): _W4A8,
    ("MXFP4", False): _MXFP,
    ("MXFP4", True): _MXFP,
    ("MXFP8", False): _MXFP,
    ("MXFP8", True): _MXFP,
}
"""Quantisation and whether MC2 is fused, to the names of what moves. MXFP4 and MXFP8 were read, not
run: their hardware is another."""

BIASES = ("w13_bias", "w2_bias")
"""Move as well, where there are any: the engine's own table of unquantised layers forgets them."""

UNUSED = frozenset(
    {
        f"{w}_{what}"
        for w in ("w13", "w2")
        for what in ("weight_offset", "deq_scale", "input_offset")
    }
)
"""Parameters with a row per slot that checkpoints bring and no kernel of the experts reads:
quantisation is symmetric, and activations are quantised as they come."""

_NOT_OF_EXPERTS = frozenset({"moe_load"})


def expert_tensors(adaptor: Adaptor, images: Images) -> ExpertTensors:
    """Return what moves, layer by layer. Raises TransferError for what cannot, with a reason."""
    layers = [
        _named(adaptor, index, layer, images) for index, layer in enumerate(adaptor.moe_layers)
    ]
    for index, (layer, named) in enumerate(zip(adaptor.moe_layers, layers, strict=True)):
        left = next(_left_behind(layer, named), "")
        if left:
            raise TransferError(
                f"layer {index}: {left} has one entry per slot and would stay behind when an "
                "expert moves; this quantisation is not supported"
            )
    return ExpertTensors(layers, images)


def _named(adaptor: Adaptor, index: int, layer: Layer, images: Images) -> dict[str, SlotTensors]:
    names = (*_names(adaptor.expert_weight_key_per_layer[index]), *_biases(layer))
    named: dict[str, SlotTensors] = {}
    for name in names:
        tensors = adaptor.param_dict.get(f"{index}.{name}")
        if tensors is None:
            tensors = getattr(layer, name, None)
        if tensors is None:
            raise TransferError(
                f"layer {index} has no {name!r}, which an expert of its quantisation consists of; "
                "is dynamic_eplb on?"
            )
        named[name] = _movable(index, name, tensors, images)
    return named


def _names(key: tuple[ExpertWeightKey, bool]) -> tuple[str, ...]:
    quantisation, fused = key
    names = DESCRIBED.get((quantisation.name, fused))
    if names is None:
        known = ", ".join(sorted({name for name, _ in DESCRIBED}))
        raise TransferError(
            f"experts of quantisation {quantisation.name} {'with' if fused else 'without'} fused "
            f"MC2 are not described; described are {known}"
        )
    return names


def check_engine_table(table: Mapping[tuple[ExpertWeightKey, bool], Sequence[str]]) -> None:
    """Hold the engine's `EPLB_EXPERT_WEIGHT_NAMES` against `DESCRIBED`.

    Raises TransferError for a quantisation of which the engine moves other tensors than are known
    here. One that is not known here at all is refused only where a layer has it.
    """
    for (quantisation, fused), names in table.items():
        known = DESCRIBED.get((quantisation.name, fused))
        if known is not None and tuple(names) != known:
            raise TransferError(
                f"vllm-ascend moves {', '.join(names)} with an expert of {quantisation.name}, this "
                f"adapter knows of {', '.join(known)}: upgrade eplbd-vllm"
            )


def _movable(index: int, name: str, tensors: SlotTensors, images: Images) -> SlotTensors:
    if not isinstance(tensors, Tensor):
        return [tensor.detach() for tensor in tensors]
    stacked = tensors.detach()
    if isinstance(images, NpuImages) and images.is_private(stacked):
        raise TransferError(
            f"layer {index}, {name!r}: all slots lie in one tensor of a private format, of which "
            "no slot can be sent alone; start the engine with VLLM_ASCEND_ENABLE_NZ=0, or with "
            "fused MC2, which splits them"
        )
    return memory_of(stacked)


def _biases(layer: Layer) -> tuple[str, ...]:
    return tuple(name for name in BIASES if isinstance(getattr(layer, name, None), Tensor))


def _left_behind(layer: Layer, moved: Mapping[str, SlotTensors]) -> Iterator[str]:
    """Names of tensors, or lists of them, with one entry per slot that do not move."""
    slots = layer.local_num_experts
    attributes: dict[str, object] = dict(vars(layer))
    if isinstance(layer, torch.nn.Module):
        attributes |= dict(layer.named_parameters(recurse=False))
        attributes |= dict(layer.named_buffers(recurse=False))
    for name, value in attributes.items():
        if name in moved or name in UNUSED or name in _NOT_OF_EXPERTS:
            continue
        if isinstance(value, Tensor):
            if value.ndim > 0 and value.shape[0] == slots and value.numel():
                yield f"{name} {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        elif isinstance(value, list | tuple) and len(value) == slots:
            yield from (name for each in value[:1] if isinstance(each, Tensor))
