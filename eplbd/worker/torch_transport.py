"""Two ways from a rank's memory to a lane: directly, or through pinned memory of the host.

Owns how an expert becomes messages. It must not know rounds, checksums or failures of peers.

Directly, each tensor is its own message, from the live slot into the staging buffer, and the header
goes first. Packing an expert into one message first was measured on gloo: 44 MB in 8 tensors took
22.6 ms instead of 19.1 ms, 1 MB in 8 tensors 0.64 ms instead of 0.65 ms. So the sender copies
nothing and needs no memory.

Through the host, the bytes have to be copied there anyway, and an expert is one message. For
devices whose own transport may not run beside the forward's kernels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eplbd.worker.executor import Transfer
from eplbd.worker.torch_lane import Leg
from eplbd.worker.torch_staging import Layout, break_seal


@dataclass(frozen=True, slots=True, eq=False)
class Cargo:
    """An expert's bytes at one end of a transfer, header first, on the rank's device."""

    transfer: Transfer
    layout: Layout
    header: Tensor
    parts: list[Tensor]


class Transport(Protocol):
    """Turns cargo into legs of a batch, around the batch's exchange."""

    @property
    def device(self) -> torch.device:
        """Where the lane finds the messages."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of its own on the host."""
        ...

    def load(self, cargo: Cargo, index: int, failed: Callable[[RuntimeError], None]) -> list[Leg]:
        """Return the messages that send `cargo`, number `index` of its round.

        They are returned in any case; a failure is reported and the seal broken.
        """
        ...

    def expect(self, cargo: Cargo, index: int) -> list[Leg]:
        """Return the messages that receive `cargo`, number `index` of its round."""
        ...

    def unload(self, cargo: Cargo, index: int) -> None:
        """Bring what was received to `cargo`."""
        ...


class Direct:
    """Messages are views of slots and staging buffers."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.nbytes = 0

    def load(self, cargo: Cargo, index: int, failed: Callable[[RuntimeError], None]) -> list[Leg]:
        """See `Transport`."""
        return _legs(cargo, [cargo.header, *cargo.parts], sends=True)

    def expect(self, cargo: Cargo, index: int) -> list[Leg]:
        """See `Transport`."""
        return _legs(cargo, [cargo.header, *cargo.parts], sends=False)

    def unload(self, cargo: Cargo, index: int) -> None:
        """See `Transport`."""


class HostStaged:
    """One message per expert, by way of pinned host memory of `largest` bytes each.

    Buffers are made when first needed: as many each way as a round has sends, or receives.
    """

    def __init__(self, device: torch.device, largest: int) -> None:
        self.device = torch.device("cpu")
        self._pinned = device.type != "cpu"
        self._largest = largest
        self._out: list[Tensor] = []
        self._in: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Memory of its own on the host."""
        return sum(buffer.nbytes for buffer in (*self._out, *self._in))

    def load(self, cargo: Cargo, index: int, failed: Callable[[RuntimeError], None]) -> list[Leg]:
        """See `Transport`. The copies are asynchronous: wait for them before the exchange."""
        host = self._buffer(self._out, index)
        layout = cargo.layout
        try:
            layout.header(host).copy_(cargo.header, non_blocking=True)
            for there, here in zip(layout.parts(host), cargo.parts, strict=True):
                there.copy_(here, non_blocking=True)
        except RuntimeError as error:
            failed(error)
            break_seal(layout.header(host))
        return _legs(cargo, [host[: layout.nbytes]], sends=True)

    def expect(self, cargo: Cargo, index: int) -> list[Leg]:
        """See `Transport`."""
        host = self._buffer(self._in, index)
        return _legs(cargo, [host[: cargo.layout.nbytes]], sends=False)

    def unload(self, cargo: Cargo, index: int) -> None:
        """See `Transport`. The copies are asynchronous: wait before the next round."""
        host = self._in[index]
        cargo.header.copy_(cargo.layout.header(host), non_blocking=True)
        for here, there in zip(cargo.parts, cargo.layout.parts(host), strict=True):
            here.copy_(there, non_blocking=True)

    def _buffer(self, buffers: list[Tensor], index: int) -> Tensor:
        while len(buffers) <= index:
            made = torch.zeros(self._largest, dtype=torch.uint8, pin_memory=self._pinned)
            buffers.append(made)
        return buffers[index]


def _legs(cargo: Cargo, messages: list[Tensor], *, sends: bool) -> list[Leg]:
    transfer = cargo.transfer
    peer = transfer.dst if sends else transfer.src
    return [
        Leg(message, peer, _tag(transfer, index), sends, str(transfer))
        for index, message in enumerate(messages)
    ]


def _tag(transfer: Transfer, index: int) -> int:
    """A tag of 31 bits that no other message of the epoch has, but for a chance in millions.

    With equal tags, a receive could meet a longer message of another transfer, and gloo ends the
    process for that; with different ones both sides time out. NCCL and HCCL ignore tags and go by
    order alone; there the seal tells.
    """
    words = (transfer.round, transfer.layer, transfer.expert, transfer.dst_slot, index)
    return zlib.crc32(repr(words).encode()) & 0x7FFF_FFFF
