"""Which slot serves each token: replicas chosen and load counted, on the device, in one call.

Owns the rule by which the tokens of a step are dealt to the replicas of their experts, and the
count of what was dealt. It must not know layers, engines, plans or when a table changes: it reads
tables where they lie and adds to a counter where it lies, so a captured graph may hold it.

The rule is a round robin per expert, exact in every step: of the tokens that chose an expert each
replica gets the same number or one more, whatever their positions. A choice by position alone
(`position % replicas`, or a hash of the position) is even only over positions that do not know of
the expert: with every second token on one expert a modulo by two finds one replica, and in a decode
step of one token per rank all are at position 0, so all ranks send to the first replica. A place in
the expert's own queue has no such pattern. It is counted from the step's choices in their order,
never by atomics, so equal inputs give equal choices on every rank and in every run.

Shares per replica cost nothing here: `eplbd_vllm.schedule` repeats a replica in its expert's row.

Plain torch operations on purpose, and no custom operator. They run and trace on every device, the
compiler fuses them into a handful of kernels and sees that only the counter is written; an operator
of our own would hide that from it and cost every eager call its Python dispatch. Where an engine
wants an opaque node it has one around the whole MoE layer, and calls this inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GRID_CELLS = 1 << 16
"""Up to here tokens are counted in a grid of experts x tokens, above by sorting.

The grid takes half the operations, which is what a decode step pays for; its cells are what a
prefill pays for (8,192 tokens, 256 experts: six times the time of the sort on a CPU).
"""


def map_and_record(  # noqa: PLR0913 -- the engine's own signature, to be put in its place
    topk_ids: Tensor,
    expert_load_view: Tensor,
    logical_to_physical_map: Tensor,
    logical_replica_count: Tensor,
    record_enabled: Tensor | None = None,
    num_unpadded_tokens: Tensor | None = None,
    *,
    first_token: int = 0,
    offset: int = 0,
    turn: Tensor | None = None,
) -> Tensor:
    """Return the slots that serve `topk_ids` and add them to `expert_load_view`, without a sync.

    Names and order are those of vLLM's `eplb_map_to_physical_and_record`. All tensors live on one
    device; integers are int32 or int64. Slots come back as `[tokens, topk]`, typed as `topk_ids`.

    topk_ids: `[tokens, topk]`, the distinct experts of each token; an id outside `0..experts-1`
    means none, returns as -1 and is not counted. expert_load_view: `[slots]`, increased in place by
    one per choice. logical_to_physical_map: `[experts, width]`, contiguous, of each row only the
    first `logical_replica_count` (`[experts]`, at least 1) entries are read. record_enabled: bool
    of no dimensions; False counts nothing. num_unpadded_tokens: rows from there on are padding,
    which gets slots but is not counted and takes nobody's turn; of no dimensions, or `[batches]`
    for so many equal blocks of rows, each padded at its end. first_token: tokens that this number
    covers before the first row, in part of a padded batch.

    offset: moves every expert's round robin. Under all-to-all the source rank, so that ranks with
    few tokens do not all begin at one replica; 0 where every rank repeats one routing, on all.
    turn: integer of no dimensions, equal on all ranks and other in each forward, such as the count
    of forwards: who takes the odd tokens then changes from step to step alike on all ranks. None
    takes the step's own routing for it, which no ranks have to agree on; small steps of many ranks
    are then a little less even together.
    """
    experts, width = logical_to_physical_map.shape
    expert = topk_ids.long().clamp(0, experts - 1)
    known = expert == topk_ids
    counted, place = _place(expert, known, experts, num_unpadded_tokens, first_token)
    if turn is None:
        turn = (expert * counted).sum()
    # Neighbouring experts begin at neighbouring replicas, or all odd tokens went to the first.
    replicas = logical_replica_count.index_select(0, expert.flatten())
    replica = (place + expert + (turn + offset)).flatten() % replicas
    entry = (expert * width).flatten() + replica
    slot = logical_to_physical_map.reshape(-1).index_select(0, entry)
    weight = counted if record_enabled is None else counted & record_enabled
    expert_load_view.index_add_(0, slot, weight.flatten().to(expert_load_view.dtype))
    return torch.where(known, slot.view_as(expert), -1).to(topk_ids.dtype)


def _place(
    expert: Tensor, known: Tensor, experts: int, unpadded: Tensor | None, first_token: int
) -> tuple[Tensor, Tensor]:
    """Who counts, bool, and everybody's place in the queue of the expert, from 1: `[tokens, topk]`.

    expert: `[tokens, topk]` int64 in `0..experts-1`. known: bool of that shape. Padding is computed
    too. It is dealt by its position, as it mostly repeats one routing.
    """
    row = torch.arange(expert.shape[0], device=expert.device)[:, None]
    queue = _by_grid if expert.shape[0] * experts <= _GRID_CELLS else _by_sort
    if unpadded is None:
        return known, queue(expert, known, row, experts)
    if unpadded.ndim == 0:
        valid = row + first_token < unpadded
    else:
        block = row[: expert.shape[0] // unpadded.shape[0]].T + first_token
        valid = torch.lt(block, unpadded[:, None]).reshape(-1, 1)
    counted = known & valid
    return counted, torch.where(valid, queue(expert, counted, row, experts), row)


def _by_grid(expert: Tensor, counted: Tensor, row: Tensor, experts: int) -> Tensor:
    """Places of what counts, from running totals of `[experts, tokens]`; others' mean nothing."""
    tokens = expert.shape[0]
    cell = (expert * tokens + row).flatten()
    grid = torch.zeros(experts * tokens, dtype=torch.int32, device=expert.device)
    grid.index_add_(0, cell, counted.flatten().to(torch.int32))
    grid.view(experts, tokens).cumsum_(1)
    return grid.index_select(0, cell).view_as(expert)


def _by_sort(expert: Tensor, counted: Tensor, row: Tensor, experts: int) -> Tensor:
    """As `_by_grid`, from a stable sort, in which the choices of one expert are consecutive."""
    # Sorting takes time by the bytes of its keys.
    narrow = torch.int16 if experts <= torch.iinfo(torch.int16).max else torch.int32
    key = torch.where(counted, expert, experts).flatten().to(narrow)
    queued, order = key.sort(stable=True)
    heads = torch.searchsorted(queued, torch.arange(experts + 1, device=row.device).to(narrow))
    ranked = torch.arange(1, key.shape[0] + 1, device=row.device)
    place = ranked - heads.index_select(0, queued.int())
    return torch.empty_like(place).scatter_(0, order, place).view_as(expert)
