"""The seam to an engine's expert weights: which tensors an expert consists of, and where they lie.

Owns the description of every tensor to move, the refusal of those that cannot be moved as bytes,
and the byte views. It must not know how an engine names things (its adapter hands over names), nor
transfers.

Weights **and** scales belong here, and whatever a kernel derived from them at load time: what is
left out stays behind when its expert moves. Refused is what has broken other systems silently:
strided slot views, and storage shared between slots or names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from eplbd.errors import TransferError

SlotTensors: TypeAlias = Tensor | Sequence[Tensor]
"""One tensor `[slots, ...]`, or one tensor per slot."""


class Images(Protocol):
    """How a slot's tensor becomes plain bytes and back.

    For most tensors their memory is their bytes. Some devices have private layouts in which it is
    not (Ascend's FRACTAL_NZ): there a flat view is not what it seems, and writing to it is lost.
    """

    def read(self, tensor: Tensor) -> Tensor:
        """Return the contents as flat uint8: a view of live memory, or a copy made just now."""
        ...

    def write(self, tensor: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(target, source)` so that `target.copy_(source)` gives `tensor` the contents.

        image: flat uint8, what `read` returned on some rank. Called ahead of the commit, on the
        side stream: whatever it takes to make `source` happens here, not on the forward thread.
        """
        ...


class PlainImages:
    """Memory is contents: every tensor of CPU and CUDA, and of NPU in its base formats."""

    def read(self, tensor: Tensor) -> Tensor:
        """See `Images`."""
        return tensor.detach().reshape(-1).view(torch.uint8)

    def write(self, tensor: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `Images`."""
        return self.read(tensor), image


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor of the experts of one layer.

    shape: of one slot. bytes: of one slot. stacked: all slots lie in one tensor. contiguous: every
    slot is one run of bytes. aliased: name of the tensor or slot it shares memory with, "" if none.
    """

    layer: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    stacked: bool
    contiguous: bool
    aliased: str


@dataclass(frozen=True, slots=True)
class _Run:
    """The memory of one slot of one tensor."""

    start: int
    end: int
    layer: int
    name: str
    slot: int

    def __str__(self) -> str:
        return f"layer {self.layer}, {self.name!r}, slot {self.slot}"


class ExpertTensors:
    """The experts of one rank: for each layer, name -> its slots' tensors, in the order to send.

    Slots are numbered as the rank's local slots. The tensors are kept, not copied; the byte views
    are made anew at each use, so a parameter whose `.data` the engine replaced is still found.
    images: of devices with private layouts. Raises TransferError for what cannot be moved, naming
    the layer, the tensor and the fix.
    """

    def __init__(
        self, layers: Sequence[Mapping[str, SlotTensors]], images: Images | None = None
    ) -> None:
        self._layers = [dict(layer) for layer in layers]
        self._images: Images = images or PlainImages()
        self._specs = describe(self._layers)
        self.slots = _check(self._layers, self._specs)
        self.device = _slot(next(iter(self._layers[0].values())), 0).device
        self._sizes = [
            tuple(spec.bytes for spec in self._specs if spec.layer == layer)
            for layer in range(len(self._layers))
        ]

    @property
    def layers(self) -> int:
        """Number of MoE layers."""
        return len(self._layers)

    @property
    def layout_digest(self) -> str:
        """16 hexadecimal digits over layers, names, dtypes and shapes; equal on all ranks."""
        hashed = blake2b(digest_size=8)
        for spec in self._specs:
            hashed.update(repr((spec.layer, spec.name, spec.dtype, spec.shape)).encode())
        return hashed.hexdigest()

    @property
    def expert_bytes(self) -> int:
        """Bytes of the largest expert, all its tensors together."""
        return max(map(sum, self._sizes))

    @property
    def unaligned(self) -> bool:
        """Some slot of some tensor starts at no multiple of eight bytes."""
        return any(
            _slot(tensors, slot).data_ptr() % 8
            for layer in self._layers
            for tensors in layer.values()
            for slot in range(self.slots)
        )

    def describe(self) -> tuple[TensorSpec, ...]:
        """Every tensor to move, by layer, in the order of names."""
        return self._specs

    def names(self, layer: int) -> tuple[str, ...]:
        """Names of a layer's tensors, in order."""
        return tuple(self._layers[layer])

    def sizes(self, layer: int) -> tuple[int, ...]:
        """Bytes of one slot of each of a layer's tensors, in order."""
        return self._sizes[layer]

    def parts(self, layer: int, slot: int) -> list[Tensor]:
        """Return the contents of the slot's tensors as flat uint8, in order; see `Images.read`.

        Raises TransferError where the engine has replaced one by another of a different size.
        """
        read = self._images.read
        parts = [read(_slot(tensors, slot)) for tensors in self._layers[layer].values()]
        if tuple(part.numel() for part in parts) != self._sizes[layer]:
            raise TransferError(
                f"layer {layer}, slot {slot}: a tensor has another size than when the rank attached"
            )
        return parts

    def pairs(self, layer: int, slot: int, staged: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return `(target, source)` copies that give the slot's tensors the contents `staged`.

        staged: of `parts`, on any rank. Raises TransferError as `parts` does.
        """
        found = [_slot(tensors, slot) for tensors in self._layers[layer].values()]
        if tuple(tensor.nbytes for tensor in found) != self._sizes[layer]:
            raise TransferError(
                f"layer {layer}, slot {slot}: a tensor has another size than when the rank attached"
            )
        return [
            self._images.write(tensor, image) for tensor, image in zip(found, staged, strict=True)
        ]


def describe(layers: Sequence[Mapping[str, SlotTensors]]) -> tuple[TensorSpec, ...]:
    """Describe every tensor, also those that `ExpertTensors` would refuse."""
    aliases = _aliases(layers)
    return tuple(
        _describe(layer, name, tensors, aliases.get((layer, name), ""))
        for layer, named in enumerate(layers)
        for name, tensors in named.items()
    )


def _describe(layer: int, name: str, tensors: SlotTensors, aliased: str) -> TensorSpec:
    slots = [_slot(tensors, slot) for slot in range(len(tensors))]
    first = slots[0] if slots else torch.empty(0)
    return TensorSpec(
        layer,
        name,
        str(first.dtype).removeprefix("torch."),
        tuple(first.shape),
        first.nbytes,
        stacked=isinstance(tensors, Tensor),
        contiguous=all(slot.is_contiguous() for slot in slots),
        aliased=aliased,
    )


def _slot(tensors: SlotTensors, slot: int) -> Tensor:
    return tensors[slot]


def _aliases(layers: Sequence[Mapping[str, SlotTensors]]) -> dict[tuple[int, str], str]:
    """Return what each (layer, name) shares memory with, where it does."""
    runs = [
        _Run(slot.data_ptr(), slot.data_ptr() + _span(slot), layer, name, index)
        for layer, named in enumerate(layers)
        for name, tensors in named.items()
        for index, slot in enumerate(_slot(tensors, i) for i in range(len(tensors)))
    ]
    runs.sort(key=lambda run: (run.start, run.end))
    return {
        (after.layer, after.name): str(before)
        for before, after in pairwise(runs)
        if after.start < before.end
    }


def _span(tensor: Tensor) -> int:
    """Bytes from the first element to behind the last; of a strided view more than its own."""
    if tensor.numel() == 0:
        return 0
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


def _check(layers: Sequence[Mapping[str, SlotTensors]], specs: Sequence[TensorSpec]) -> int:
    """Return the number of slots, or raise TransferError for the first tensor at fault."""
    if not layers or not all(layers):
        raise TransferError("expert weights: a layer without tensors; name every MoE layer's")
    slots = len(next(iter(layers[0].values())))
    device = _slot(next(iter(layers[0].values())), 0).device if slots else None
    for spec in specs:
        where = f"expert weights: layer {spec.layer}, {spec.name!r}"
        tensors = layers[spec.layer][spec.name]
        if len(tensors) != slots or not slots:
            raise TransferError(f"{where} has {len(tensors)} slots, the first tensor {slots}")
        if spec.bytes == 0:
            raise TransferError(f"{where} has no bytes; leave it out")
        if not spec.contiguous:
            raise TransferError(
                f"{where} has strided slots; hand over the memory itself, not a transposed view"
            )
        if spec.aliased:
            raise TransferError(
                f"{where} shares memory with {spec.aliased}; hand over each memory once"
            )
        for slot in range(slots):
            tensor = _slot(tensors, slot)
            found = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            if found != (spec.dtype, spec.shape):
                raise TransferError(
                    f"{where}, slot {slot} is {found}, slot 0 {spec.dtype, spec.shape}"
                )
            if tensor.device != device:
                raise TransferError(f"{where} is on {tensor.device}, the first tensor on {device}")
    return slots
