"""The expert tensors of a rank's layers: enumerated, named, and nothing overlooked.

Owns the names of what moves and the search for what would stay behind: a tensor with one row per
slot that is no parameter of its layer was derived from one at load time (scales in another dtype,
packed copies), and an expert that moves without it computes wrongly and says nothing. Whether what
was found can travel as bytes is `ExpertTensors`' judgement. It must not know maps or the daemon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor
from torch.nn import Module

from eplbd.errors import TransferError
from eplbd.worker.torch_experts import ExpertTensors, TensorSpec
from eplbd_vllm.upstream import MoeLayer, RoutedExperts

NOT_OF_EXPERTS = frozenset(
    {"e_score_correction_bias", "w13_input_scale", "w2_input_scale", "hash_indices_table"}
)
"""Parameters that vLLM itself leaves where they are: shared by all experts, or indexed by token."""

_DEPTH = 4
"""Layer, quantisation method, kernel, its experts, their quantisation: as far as kernels keep
tensors."""


def expert_tensors(layers: list[MoeLayer]) -> ExpertTensors:
    """Return what moves, layer by layer. Raises TransferError for what cannot, with a reason."""
    named = [_named(layer) for layer in layers]
    for layer, tensors in zip(layers, named, strict=True):
        left = left_behind(layer.routed_experts, tensors)
        if left:
            raise TransferError(
                f"layer {layer.layer_name}: {left} has one row per slot and is no parameter: it "
                "was derived from the weights and would stay behind; choose another quantisation "
                "or MoE backend"
            )
    return ExpertTensors(named)


def table(specs: tuple[TensorSpec, ...]) -> str:
    """Return every tensor that moves, on one line: layers that are alike are told once."""
    layers: dict[int, list[str]] = {}
    for spec in specs:
        said = f"{spec.name} {spec.dtype}{list(spec.shape)} {spec.bytes} B"
        layers.setdefault(spec.layer, []).append(said)
    alike: dict[str, list[int]] = {}
    for layer, tensors in layers.items():
        alike.setdefault(", ".join(tensors), []).append(layer)
    return "; ".join(
        f"{len(numbers)} layers ({_runs(numbers)}), per slot {tensors}"
        for tensors, numbers in alike.items()
    )


def _runs(numbers: list[int]) -> str:
    """`0-2, 5` of ascending 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _named(layer: MoeLayer) -> dict[str, Tensor]:
    """Name vLLM's views by the parameters whose memory they are."""
    experts = layer.routed_experts
    names = {parameter.data_ptr(): name for name, parameter in experts.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for index, view in enumerate(experts.get_expert_weights()):
        tensors[names.get(view.data_ptr(), f"tensor {index}")] = view.detach()
    return tensors


def left_behind(experts: RoutedExperts, moved: Mapping[str, Tensor]) -> str:
    """Return where a tensor with one row per local slot lies that does not move; empty if none."""
    runs = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in moved.values())
    for path, tensor in _reachable(experts, "", _DEPTH, set()):
        leaf = path.rpartition(".")[2]
        if tensor.ndim == 0 or tensor.shape[0] != experts.local_num_experts or not tensor.nbytes:
            continue
        if leaf in NOT_OF_EXPERTS or any(a <= tensor.data_ptr() < b for a, b in runs):
            continue
        if tensor.stride(0) == 0:
            continue  # one value seen through every row
        return f"{path} {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    return ""


def _reachable(
    thing: object, path: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that `thing` and what it holds refer to, as far as `depth`."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    for name, value in _held(thing):
        where = f"{path}.{name}" if path else name
        if isinstance(value, Tensor):
            yield where, value
        elif depth and _is_of_the_engine(value):
            yield from _reachable(value, where, depth - 1, seen)


def _held(thing: object) -> Iterator[tuple[str, object]]:
    if isinstance(thing, Module):
        yield from thing.named_parameters(recurse=False)
        yield from thing.named_buffers(recurse=False)
        yield from thing.named_children()
    if isinstance(thing, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(thing))
    elif is_dataclass(thing):
        yield from ((field.name, getattr(thing, field.name, None)) for field in fields(thing))
    else:
        yield from vars(thing).items() if hasattr(thing, "__dict__") else ()


def _is_of_the_engine(value: object) -> bool:
    """Containers, and objects of vLLM's own classes: the search stays out of the rest."""
    if isinstance(value, list | tuple):
        return any(isinstance(each, torch.Tensor) for each in value)
    return type(value).__module__.startswith("vllm.")
