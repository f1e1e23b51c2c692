"""A decoder-like stack of mixture-of-experts layers: embedding, gates and the forward of one rank.

Owns the dense weights, the gates and the order of a forward. It must not know who changes the maps
and weights between two forwards, nor who reads the counts.

A token's hidden state is its own embedding plus a mean of those before it, so that the topic of a
text reaches the gates as it does through attention: skew and its change with the topic come from
real token frequencies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad, rms_norm

from eplbd.core.messages import Prepare
from eplbd.demo.dispatch import Exchange
from eplbd.demo.experts import Experts, tensor_seed
from eplbd.demo.maps import ReplicaMaps, spread_of
from eplbd.demo.shape import Shape

CONTEXT_WEIGHT = 8.0
"""Of the mean over the context beside the token itself. With it and `SHARED_WEIGHT` the hottest
expert of a layer takes 4 to 6 times the mean, as recorded from models of this size (gpt-oss-20b:
3.4 on average, 7 at most), and a fifth to a third of the heat moves when the topic changes."""
SHARED_WEIGHT = 1.0
"""Of one direction that all embeddings share, as in trained models: some experts stay popular."""
_EPSILON = 1e-6
_EMBEDDING, _SHARED, _GATE, _MIX = range(-4, 0)
"""Seeds' places; layers are numbered from 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The tokens of one forward on one rank.

    ids: `[blocks, context + n]` int64 token ids of the slices that this rank computes; the first
    `context` of each only give context. n may be 0: a dummy step, which dispatches all the same.
    index: `[blocks * n]` int64, each token's index in the step over all ranks. experts: `[layers,
    blocks * n, topk]` int64, routing that replaces the gates' choice; None leaves it to the gates.
    """

    ids: Tensor
    index: Tensor
    experts: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens that are routed."""
        return self.index.numel()


@dataclass(frozen=True, slots=True, eq=False)
class Counters:
    """Where a forward counts, at fixed addresses, by in-place addition only; never reset here.

    received: `[layers, slots_per_rank]` int32, tokens that reached each of this rank's slots.
    routed: `[1]` int64, (token, expert) assignments that this rank made.
    """

    received: Tensor
    routed: Tensor

    @classmethod
    def zeros(cls, shape: Shape) -> Counters:
        """Fresh counters."""
        received = torch.zeros(shape.layers, shape.slots_per_rank, dtype=torch.int32)
        return cls(received, torch.zeros(1, dtype=torch.int64))


class Dense:
    """What every rank holds and no placement moves: embedding, dense layers and gates; read-only.

    embedding: `[vocabulary, hidden]`. mix: `[layers, hidden, hidden]`, the dense step between two
    MoE layers. gates: `[layers, hidden, experts]`. All float32, generated from `seed`.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape

        def normal(place: int, *size: int) -> Tensor:
            source = torch.Generator().manual_seed(tensor_seed(seed, place))
            return torch.randn(*size, generator=source)

        hidden, narrow = shape.hidden, shape.hidden**-0.5
        self.embedding = normal(_EMBEDDING, shape.vocabulary, hidden)
        self.embedding += SHARED_WEIGHT / (1 + CONTEXT_WEIGHT) * normal(_SHARED, hidden)
        self.mix = normal(_MIX, shape.layers, hidden, hidden) * narrow
        self.gates = normal(_GATE, shape.layers, hidden, shape.experts) * narrow

    def embed(self, ids: Tensor) -> Tensor:
        """`[blocks * n, hidden]`: embedding plus the weighted mean over the context before it."""
        table, width = self.embedding[ids], self.shape.context
        sums = pad(table.cumsum(1), (0, 0, 1, 0))
        mean = (sums[:, width:-1] - sums[:, : -width - 1]) / width
        return (table[:, width:] + CONTEXT_WEIGHT * mean).flatten(0, 1)


def normalised(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis."""
    return rms_norm(x, x.shape[-1:], eps=_EPSILON)


class MoeModel:
    """One rank's model: shared dense weights, own experts, own copy of the maps."""

    def __init__(
        self,
        dense: Dense,
        experts: Experts,
        maps: ReplicaMaps,
        exchange: Exchange,
        counters: Counters,
    ) -> None:
        self.dense = dense
        self.experts = experts
        self.maps = maps
        self.counters = counters
        self._exchange = exchange

    def forward(self, batch: Batch) -> Tensor:
        """`[tokens, hidden]` float32. Collective: every rank calls it for the same step."""
        shape = self.dense.shape
        with torch.inference_mode():
            x = self.dense.embed(batch.ids)
            spread = spread_of(batch.index)
            for layer in range(shape.layers):
                x = x + normalised(x) @ self.dense.mix[layer]
                x = x + self._layer(layer, normalised(x), spread, batch.experts)
            self.counters.routed.add_(batch.tokens * shape.topk * shape.layers)
            return x

    def stage_maps(self, prepare: Prepare) -> Callable[[], None]:
        """Lay out an epoch's maps, on any thread; what is returned puts them in force.

        That is one in-place copy, to be called on the forward's thread between two forwards. Raises
        TransferError for maps that there is no room for.
        """
        update = self.maps.stage(
            prepare.layers,
            prepare.slots,
            prepare.replica_count,
            prepare.physical,
            prepare.parts,
        )
        return partial(self.maps.write, update)

    def _layer(self, layer: int, x: Tensor, spread: Tensor, forced: Tensor | None) -> Tensor:
        logits = x @ self.dense.gates[layer]
        if forced is None:
            chosen, experts = logits.topk(self.dense.shape.topk, dim=-1)
        else:
            experts = forced[layer]
            chosen = logits.gather(1, experts)
        slots = self.maps.choose(layer, experts, spread)
        mixed, received = self._exchange.mix(layer, x, slots, chosen.softmax(-1))
        self.counters.received[layer].add_(received)
        return mixed
