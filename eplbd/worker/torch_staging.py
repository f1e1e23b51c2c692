"""Staging memory: where experts wait between their arrival and the commit.

Owns the buffers, their layout, the seal that travels with an expert and its comparison. It must not
know rounds, ranks or how bytes arrive.

A buffer holds a header, then each tensor at an aligned offset; every rank computes the same layout.
The header is the expert's seal: which expert this is, and one checksum per tensor, made once by the
rank that holds it in a live slot. A relay passes the header on unread, so what arrives at the end
of a fan-out tree is compared with the origin and a relay that damaged it is found out.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from eplbd.worker.torch_checksum import WORDS, Checksums
from eplbd.worker.torch_experts import ExpertTensors

_ALIGNMENT = 256
"""Bytes; what device copies and NCCL like best, and every dtype's own needs."""

_SEAL = 0x0045_504C_4244_0001
"""First header word of an expert whose holder vouches for it. A broken seal is 0."""

_WORD = 8
_IDENTITY = 2
"""Header words before the checksums: the seal, and layer and expert in one."""


class Layout:
    """Offsets of a header and of tensors of `sizes` bytes in a staging buffer."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.header_bytes = (_IDENTITY + WORDS * len(sizes)) * _WORD
        self.offsets: list[int] = []
        end = self.header_bytes
        for size in sizes:
            start = _aligned(end)
            self.offsets.append(start)
            end = start + size
        self.nbytes = _aligned(end)

    def header(self, buffer: Tensor) -> Tensor:
        """View of the header as flat uint8."""
        return buffer[: self.header_bytes]

    def parts(self, buffer: Tensor) -> list[Tensor]:
        """Views of the tensors' bytes, in order."""
        pairs = zip(self.offsets, self.sizes, strict=True)
        return [buffer[start : start + size] for start, size in pairs]


class Staging:
    """`count` staging buffers for `experts` on their device, each big enough for any layer's."""

    def __init__(self, experts: ExpertTensors, count: int) -> None:
        device = experts.device
        sizes = [experts.sizes(layer) for layer in range(experts.layers)]
        layouts = {each: Layout(each) for each in set(sizes)}
        self._layouts = [layouts[each] for each in sizes]
        unaligned = experts.unaligned
        self._checksums = {each: Checksums(each, device, unaligned=unaligned) for each in layouts}
        self.largest = max(layout.nbytes for layout in layouts.values())
        headers = max(layout.header_bytes for layout in layouts.values())
        memory = torch.empty((count, self.largest), dtype=torch.uint8, device=device)
        outgoing = torch.zeros((count, headers), dtype=torch.uint8, device=device)
        self._buffers = memory.unbind()
        self._outgoing = outgoing.unbind()

    @property
    def nbytes(self) -> int:
        """Memory of buffers, headers and checksums' temporaries."""
        kept = sum(tensor.nbytes for tensor in (*self._buffers, *self._outgoing))
        return kept + sum(checksums.nbytes for checksums in self._checksums.values())

    def layout(self, layer: int) -> Layout:
        """Return the layout of a layer's experts."""
        return self._layouts[layer]

    def buffer(self, index: int) -> Tensor:
        """Return a staging buffer, flat uint8."""
        return self._buffers[index]

    def outgoing(self, index: int) -> Tensor:
        """Return memory for the header of the round's send number `index`."""
        return self._outgoing[index]

    def seal(self, header: Tensor, layer: int, expert: int, parts: list[Tensor]) -> None:
        """Write the header for the expert that `parts`, a live slot's, are."""
        words = header.view(torch.int64)
        words[_IDENTITY:].copy_(self._checksums[self._layouts[layer].sizes].compute(parts).view(-1))
        words[1].fill_(_identity(layer, expert))
        words[0].fill_(_SEAL)

    def verdict(self, index: int, layer: int, expert: int) -> Tensor:
        """Return `[1 + tensors]` bool: the header is wrong; each tensor is not what was sealed."""
        layout, buffer = self._layouts[layer], self._buffers[index]
        words = layout.header(buffer).view(torch.int64)
        sealed = words[_IDENTITY:].view(-1, WORDS)
        found = self._checksums[layout.sizes].compute(layout.parts(buffer))
        wrong = (words[:1] != _SEAL) | (words[1:2] != _identity(layer, expert))
        return torch.cat([wrong, (sealed != found).any(1)])


def break_seal(header: Tensor) -> None:
    """Let nobody commit what follows `header`; used where the sender itself failed."""
    # Where the device is past even this, the transfer fails without our help.
    with contextlib.suppress(RuntimeError):
        header.zero_()


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _identity(layer: int, expert: int) -> int:
    return layer << 32 | expert
