"""The experts that one rank holds: their tensors, and rows run through them in exact tiles.

Owns the weights in the rank's slots and the only matrix products whose rows move between ranks. It
must not know routing, maps or other ranks.

A row's result must be the same bits whichever slot, batch and neighbours it is computed with. BLAS
libraries choose a kernel by the shape of the product, so every product here has one shape: `tile`
rows, padded with zeros, one batch entry per tile. What a machine's library makes of that is not
taken on trust: `probe` compares rows in many places and refuses to start where bits differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from eplbd.demo.shape import Shape
from eplbd.errors import ConfigError

SCALE_SPREAD = 0.25
"""Scales lie within 1 +- this: far enough from 1 that a scale left behind shows in the output."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerExperts:
    """All tensors of one layer that move with an expert; index 0 is the local slot, float32."""

    w13: Tensor
    """`[slots, 2 * ffn, hidden]`, gate and up projection."""
    w2: Tensor
    """`[slots, hidden, ffn]`, down projection."""
    w2_scale: Tensor
    """`[slots, hidden]`, factor of each output channel."""

    def named(self) -> dict[str, Tensor]:
        """Every tensor to move, by name."""
        return {"w13": self.w13, "w2": self.w2, "w2_scale": self.w2_scale}


def tensor_seed(seed: int, *place: int) -> int:
    """63-bit seed of one tensor, the same in every process; `place` names the tensor."""
    digest = blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Experts:
    """The slots of one rank in every layer.

    placement: `[layers, slots_per_rank]` int32 logical expert per slot. Weights depend on (seed,
    layer, expert) alone, so any rank can hold any expert and hold the same bits.
    """

    def __init__(self, shape: Shape, placement: NDArray[np.int32], seed: int) -> None:
        self.shape = shape
        self._seed = seed
        self._memory = torch.empty(0)
        slots, hidden, ffn = shape.slots_per_rank, shape.hidden, shape.ffn
        self.layers: list[LayerExperts] = [
            LayerExperts(
                w13=torch.empty(slots, 2 * ffn, hidden),
                w2=torch.empty(slots, hidden, ffn),
                w2_scale=torch.empty(slots, hidden),
            )
            for _ in range(shape.layers)
        ]
        self._transposed = [
            [[slot.t() for slot in weights] for weights in (layer.w13, layer.w2)]
            for layer in self.layers
        ]
        for layer, row in enumerate(placement.tolist()):
            for slot, expert in enumerate(row):
                self.generate(layer, slot, expert)

    def generate(self, layer: int, slot: int, expert: int) -> None:
        """Write the weights of `expert` into a slot, in place."""
        shape, tensors = self.shape, self.layers[layer]
        source = torch.Generator().manual_seed(tensor_seed(self._seed, layer, expert))
        tensors.w13[slot].normal_(0, shape.hidden**-0.5, generator=source)
        tensors.w2[slot].normal_(0, shape.ffn**-0.5, generator=source)
        tensors.w2_scale[slot].uniform_(1 - SCALE_SPREAD, 1 + SCALE_SPREAD, generator=source)

    def run(self, layer: int, rows: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Run each row through the expert in its slot: SwiGLU times the expert's scale.

        rows: `[n, hidden]` float32. slots: `[n]` int64, local slots. Returns the results
        `[n, hidden]` and the rows per slot `[slots]` int64. Rows are sorted by slot and padded to
        whole tiles of one slot.
        """
        tile, tensors = self.shape.tile, self.layers[layer]
        counts = torch.bincount(slots, minlength=self.shape.slots_per_rank)
        tiles = (counts + (tile - 1)) // tile
        shift = (tiles.cumsum(0) - tiles) * tile - (counts.cumsum(0) - counts)
        slots, order = slots.sort(stable=True)
        place = torch.arange(slots.numel()) + shift[slots]
        per_slot: list[int] = tiles.tolist()
        total = sum(per_slot)
        packed, inner, outer = self._scratch(total)
        packed.zero_()
        packed.flatten(0, 1).index_copy_(0, place, rows.index_select(0, order))
        w13, w2 = self._transposed[layer]
        _product(packed, w13, per_slot, inner)
        gate, up = inner.chunk(2, dim=-1)
        _product(silu(gate, inplace=True).mul_(up), w2, per_slot, outer)
        outer *= tensors.w2_scale.repeat_interleave(tiles, 0, output_size=total)[:, None]
        result = torch.empty_like(rows)
        result.index_copy_(0, order, outer.flatten(0, 1).index_select(0, place))
        return result, counts

    def _scratch(self, tiles: int) -> tuple[Tensor, Tensor, Tensor]:
        """Reused memory for `tiles` tiles: fresh pages would cost more than the products."""
        tile, hidden, ffn = self.shape.tile, self.shape.hidden, self.shape.ffn
        if tiles * tile * (2 * hidden + 2 * ffn) > self._memory.numel():
            self._memory = torch.empty(tiles * tile * (2 * hidden + 2 * ffn))
        first, second = tiles * tile * hidden, 2 * tiles * tile * hidden
        last = second + tiles * tile * 2 * ffn
        return (
            self._memory[:first].view(tiles, tile, hidden),
            self._memory[second:last].view(tiles, tile, 2 * ffn),
            self._memory[first:second].view(tiles, tile, hidden),
        )


def _product(tiles: Tensor, weights: Sequence[Tensor], per_slot: list[int], result: Tensor) -> None:
    """Write the products of each tile and its slot's weights into `result` `[n, tile, out]`.

    tiles: `[n, tile, in]`, by slot. weights: `[in, out]` of each slot. per_slot: tiles of each. One
    batched product per slot: a stride of zero lends the weights to each of its tiles without a
    copy.
    """
    pieces = zip(
        weights, tiles.split_with_sizes(per_slot), result.split_with_sizes(per_slot), strict=True
    )
    for shared, piece, into in pieces:
        if many := len(piece):
            torch.bmm(piece, shared.expand(many, -1, -1), out=into)


def probe(experts: Experts) -> None:
    """Check on this machine that a row's bits do not depend on the place it is computed in.

    Each of some rows is computed alone, in order, in reverse order and between rows of other slots.
    Raises ConfigError where any bit differs. Costs some milliseconds.
    """
    shape = experts.shape
    source = torch.Generator().manual_seed(tensor_seed(0, 0))
    rows = torch.randn(3 * shape.tile + 1, shape.hidden, generator=source)
    slots = torch.zeros(len(rows), dtype=torch.int64)
    others = torch.randint(shape.slots_per_rank, (len(rows),), generator=source)
    alone = torch.cat([experts.run(0, row[None], slots[:1])[0] for row in rows])
    mixed, _ = experts.run(0, torch.cat([rows.flip(0), rows]), torch.cat([others, slots]))
    found = {
        "in one batch": experts.run(0, rows, slots)[0],
        "in reverse order": experts.run(0, rows.flip(0), slots)[0].flip(0),
        "between rows of other slots": mixed[len(rows) :],
    }
    for where, result in found.items():
        if not same_bits(alone, result):
            wrong = int((alone != result).any(1).sum())
            raise ConfigError(
                f"demo: {wrong} of {len(rows)} rows come out different {where} than alone "
                f"(tiles of {shape.tile} x {shape.hidden}), so outputs could not be compared bit "
                f"for bit with this build of torch {torch.__version__}; try MKL_CBWR=COMPATIBLE"
            )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two float32 tensors are equal bit for bit: 0.0 and -0.0 differ, NaN equals itself."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))
