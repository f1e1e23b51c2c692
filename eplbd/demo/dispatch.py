"""How a token reaches the slot that serves it and how the results come back, over gloo.

Owns the two ways engines do it and their fixed buffers. It must not know gates, maps or text: it is
given slots and weights and returns mixed rows.

`all-to-all`: each rank has its own tokens and sends each copy to the rank of its slot; a wrong map
on one rank makes a wrong expert answer. `replicated`: every rank has all tokens, recomputes all
routing and contributes the rows of its own slots; maps that differ drop rows or add them twice.

Both mix a token's experts in the order of its gate, never in order of arrival, and both send blocks
of one fixed size, as captured graphs do: no counts travel first and an idle rank takes part like
any other. All exchanges are `all_to_all_single`, by far gloo's fastest collective: between four
processes on two cores it took a third of the time of its all-gather and all-reduce.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from eplbd.core.messages import Dispatch
from eplbd.demo.experts import Experts
from eplbd.demo.shape import Shape

_ELSEWHERE = -1.0
"""Tag of an expert that does not live on the rank that reads it."""


class Exchange(Protocol):
    """One MoE layer's exchange. Collective: every rank calls it for the same layer."""

    def mix(self, layer: int, x: Tensor, slots: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed expert outputs `[n, hidden]` and the rows per own slot `[slots]` int64.

        x: `[n, hidden]` float32. slots: `[n, topk]` int64 global slot ids. weights: `[n, topk]`.
        n is at most the tokens that this rank may hold, and may be 0.
        """


class AllToAll:
    """Each rank has its own tokens; results return to the rank that asked.

    A token travels once to each rank, followed by `topk` tags: the local slot there of its k-th
    expert, or -1 if that lives elsewhere. The results return ragged, in the order of (token, k):
    both ends know from the tags how many there are.
    """

    def __init__(self, shape: Shape, experts: Experts, group: dist.ProcessGroup) -> None:
        self._experts, self._group = experts, group
        self._per_rank, self._hidden = shape.slots_per_rank, shape.hidden
        size = (shape.ranks, shape.tokens, shape.hidden + shape.topk)
        self._outward, self._inward = (torch.full(size, _ELSEWHERE) for _ in range(2))
        self._ranks = torch.arange(shape.ranks)[:, None, None]

    def mix(self, layer: int, x: Tensor, slots: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """See `Exchange`."""
        n, topk = slots.shape
        home = torch.div(slots, self._per_rank, rounding_mode="floor")
        self._outward[:, :n, : self._hidden] = x
        tags = self._outward[:, :, self._hidden :]
        tags[:, :n] = torch.where(home == self._ranks, slots - home * self._per_rank, -1)
        tags[:, n:] = _ELSEWHERE
        dist.all_to_all_single(self._inward, self._outward, group=self._group)

        tags = self._inward[:, :, self._hidden :].flatten(1).long()
        here = tags >= 0
        got = here.flatten().nonzero().flatten()
        token = torch.div(got, topk, rounding_mode="floor")
        rows = self._inward.flatten(0, 1).index_select(0, token)[:, : self._hidden]
        result, counts = self._experts.run(layer, rows, tags.flatten()[got])

        asked, order = home.flatten().sort(stable=True)
        back = torch.bincount(asked, minlength=len(self._ranks)).tolist()
        returned = result.new_empty(n * topk, self._hidden)
        dist.all_to_all_single(returned, result, back, here.sum(1).tolist(), group=self._group)
        mixed = torch.empty_like(returned).index_copy_(0, order, returned)
        return in_gate_order(mixed.view(n, topk, self._hidden), weights), counts


class Replicated:
    """Every rank has all tokens and contributes the rows of its own slots.

    An all-reduce in two exchanges: each rank sums the contributions to its block of the tokens and
    mixes them, then all gather the blocks. Where maps agree exactly one rank contributes to a row
    and the others add 0.0, which changes no bit but the sign of a zero, and that alike in every
    placement.
    """

    def __init__(self, shape: Shape, rank: int, experts: Experts, group: dist.ProcessGroup) -> None:
        self._rank, self._experts, self._group = rank, experts, group
        self._ranks, self._per_rank = shape.ranks, shape.slots_per_rank
        block = (shape.ranks, shape.tokens)
        self._outward, self._inward = (
            torch.zeros(*block, shape.topk, shape.hidden) for _ in range(2)
        )
        self._mixed, self._gathered = (torch.zeros(*block, shape.hidden) for _ in range(2))

    def mix(self, layer: int, x: Tensor, slots: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """See `Exchange`. The tokens are `ranks` blocks of equal size, one of each rank."""
        n, topk = slots.shape[0] // self._ranks, slots.shape[1]
        local = slots.flatten() - self._rank * self._per_rank
        own = ((local >= 0) & (local < self._per_rank)).nonzero().flatten()
        token = torch.div(own, topk, rounding_mode="floor")
        result, counts = self._experts.run(layer, x.index_select(0, token), local[own])
        part = x.new_zeros(local.numel(), x.shape[1]).index_copy_(0, own, result)
        self._outward[:, :n] = part.view(self._ranks, n, topk, x.shape[1])
        dist.all_to_all_single(self._inward, self._outward, group=self._group)
        mine = slice(self._rank * n, (self._rank + 1) * n)
        self._mixed[:, :n] = in_gate_order(self._inward[:, :n].sum(0), weights[mine])
        dist.all_to_all_single(self._gathered, self._mixed, group=self._group)
        return self._gathered[:, :n].flatten(0, 1), counts


def in_gate_order(rows: Tensor, weights: Tensor) -> Tensor:
    """`[n, hidden]`: `rows` `[n, topk, hidden]` times `weights` `[n, topk]`, summed over k.

    The order of that sum is a matter of the shape alone, and the shape one of the tokens: where a
    row was computed has no part in it.
    """
    return (rows * weights[:, :, None]).sum(1)


def open_exchange(
    dispatch: Dispatch, shape: Shape, rank: int, experts: Experts, group: dist.ProcessGroup
) -> Exchange:
    """Return one rank's exchange, with buffers of its own."""
    if dispatch is Dispatch.ALL_TO_ALL:
        return AllToAll(shape, experts, group)
    return Replicated(shape, rank, experts, group)
