"""The live model and its twin: the same tokens through experts that move and experts that do not.

Owns the pair of one rank, the comparison of their outputs, the timing and the load of both. It must
not know what happens between two forwards: that is the `Hook`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from eplbd.core.messages import Dispatch
from eplbd.core.placement import Placement
from eplbd.demo.dispatch import open_exchange
from eplbd.demo.experts import Experts, probe, same_bits
from eplbd.demo.maps import BrokenEntry, ReplicaMaps
from eplbd.demo.model import Batch, Counters, Dense, MoeModel
from eplbd.demo.shape import Shape


class Hook(Protocol):
    """What runs beside the live model's forwards, on their thread."""

    def before_forward(self) -> None:
        """Before each forward of the live model."""

    def after_forward(self, tokens: int, *, dummy: bool = False) -> None:
        """After each forward of the live model. tokens: those it routed; dummy: it had none."""


class NoHook:
    """Nothing runs beside the forwards."""

    def before_forward(self) -> None:
        """See `Hook`."""

    def after_forward(self, tokens: int, *, dummy: bool = False) -> None:
        """See `Hook`."""


@dataclass(frozen=True, slots=True)
class StepTaken:
    """One step of one rank.

    identical: whether both outputs are the same bits. live_s, twin_s: of the forwards, the live one
    with its hook. hook_s: of the two calls of the hook alone, seconds. live_load, twin_load:
    (token, expert) assignments that this rank's slots processed, per layer.
    """

    identical: bool
    live_s: float
    twin_s: float
    hook_s: float
    live_load: list[int]
    twin_load: list[int]


@dataclass(frozen=True, slots=True)
class Groups:
    """Process groups of the two models, of all ranks and each of its own: they never share."""

    live: dist.ProcessGroup
    twin: dist.ProcessGroup


class Pair:
    """One rank's live model and twin. Both share the dense weights and gates.

    Limits torch to one thread in this process, as ranks share the machine and sums must not be
    split by load, and raises ConfigError where this machine's arithmetic fails `probe`.

    placement: where the live experts start. origin: where the twin's stay, by default the same.
    counters: the live model's, at addresses that someone else may have chosen.
    """

    def __init__(
        self,
        shape: Shape,
        dispatch: Dispatch,
        groups: Groups,
        placement: Placement,
        *,
        seed: int = 0,
        counters: Counters | None = None,
        origin: Placement | None = None,
    ) -> None:
        torch.set_num_threads(1)
        self._rank = rank = groups.live.rank()
        dense = Dense(shape, seed)

        def model(where: Placement, group: dist.ProcessGroup, counts: Counters) -> MoeModel:
            experts = Experts(shape, where.slots[:, rank], seed)
            exchange = open_exchange(dispatch, shape, rank, experts, group)
            return MoeModel(dense, experts, ReplicaMaps(shape, where), exchange, counts)

        self.live = model(placement, groups.live, counters or Counters.zeros(shape))
        self.twin = model(origin or placement, groups.twin, Counters.zeros(shape))
        self._live_first = True
        probe(self.live.experts)

    def step(self, batch: Batch, hook: Hook) -> StepTaken:
        """Run both models on one batch. Collective: every rank calls it for the same step.

        They take turns at being first, so that neither is always the one that finds the caches warm
        and the peers waiting.
        """
        self._live_first = not self._live_first
        if self._live_first:
            live = _measured(self.live, batch, hook)
            twin = _measured(self.twin, batch, _NO_HOOK)
        else:
            twin = _measured(self.twin, batch, _NO_HOOK)
            live = _measured(self.live, batch, hook)
        return StepTaken(
            same_bits(live.output, twin.output),
            live.forward_s + live.hook_s,
            twin.forward_s + twin.hook_s,
            live.hook_s,
            live.load,
            twin.load,
        )

    def break_map(self, layer: int) -> BrokenEntry:
        """Make one entry of the live maps wrong, for a busy expert that this rank holds.

        Busy by the twin's counts, which nobody resets, and by the share that its slot here takes.
        """
        seen = torch.zeros(self.live.maps.shape.experts, dtype=torch.int32)
        stays = self.twin.maps.slot_expert[layer, self._rank]
        seen.index_add_(0, stays, self.twin.counters.received[layer])
        held = self.live.maps.slot_expert[layer, self._rank]
        taken = self.live.maps.parts(layer, self._rank)
        expert = int(held[(seen[held].long() * taken).argmax()])
        return self.live.maps.break_entry(layer, expert, self._rank)


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """One forward of one model; seconds without and of its hook."""

    output: Tensor
    forward_s: float
    hook_s: float
    load: list[int]


_NO_HOOK = NoHook()


def _measured(model: MoeModel, batch: Batch, hook: Hook) -> _Measured:
    """Run a forward and its hook.

    What was processed is read while the clock stands still: after the forward has counted it and
    before the hook takes the counts away.
    """
    received = model.counters.received
    before = received.sum(1)
    start = perf_counter()
    hook.before_forward()
    hooked = perf_counter()
    output = model.forward(batch)
    done = perf_counter()
    load: list[int] = (received.sum(1) - before).tolist()
    again = perf_counter()
    hook.after_forward(batch.tokens, dummy=not batch.tokens)
    end = perf_counter()
    return _Measured(output, done - hooked, hooked - start + end - again, load)
