"""Mode static: the operator's placement, put in force when a model was loaded, before any request.

Owns the walk to it: the epochs that a leader would order, without one. Nobody is served yet, so no
forward is disturbed and none has to be agreed on; what each rank has to agree on, over the store,
is that all read the same map and that all hold an epoch's weights before anyone uses them. It must
not know the agent, nor where the map comes from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch._C._distributed_c10d import PrefixStore, Store

from eplbd.core.fixed import misfit
from eplbd.core.placement import Placement
from eplbd.core.plan import EpochPlan, Plan
from eplbd.core.prepare import write_prepares
from eplbd.core.topology import Topology
from eplbd.errors import EplbdError
from eplbd.worker.executor import Executor, RankWork
from eplbd.worker.stager import Engine
from eplbd_vllm.faults import sentence

log = logging.getLogger("vllm.eplbd")

Agree = Callable[[Store, str], str]
"""Tells the others why this rank cannot go on, "" if it can; returns why the group does not."""


@dataclass(frozen=True, slots=True)
class Walk:
    """One rank's parts. experts_per_rank: staging buffers."""

    store: Store
    rank: int
    executor: Executor
    maps: Engine
    experts_per_rank: int
    agree: Agree

    def to(self, read: Callable[[], Placement], held: Placement) -> Placement:
        """Go from `held` to the placement that `read` returns; return where all ranks stand.

        Where anything is in the way all stay at the last epoch that every rank has, and the first
        one says why.
        """
        plan, reason = self._plan(read, held)
        number = 0
        while plan is not None and not reason:
            epoch = plan.next_epoch(self.experts_per_rank)
            if epoch is None:
                break
            number += 1
            reason = self._step(epoch, number)
            if not reason:
                plan.settled()
                held = epoch.target
        if reason and self.rank == 0:
            log.warning("eplbd: balance.map is not in force: %s", reason)
        return held

    def _plan(self, read: Callable[[], Placement], held: Placement) -> tuple[Plan | None, str]:
        """What all ranks walk by, or why there is nothing."""
        plan: Plan | None = None
        reason, digest = "", ""
        try:
            wanted = read()
            digest, reason = wanted.digest, misfit(wanted, held)
            if not reason:
                topology = Topology(held.ranks, held.slots_per_rank, (0,) * held.ranks)
                plan = Plan(held, Placement(wanted.slots, wanted.experts), topology)
        except (EplbdError, RuntimeError) as error:
            reason = sentence(error)
        reason = self._all("map", reason)
        if reason:
            return None, reason
        if self.rank == 0:
            self.store.set("digest", digest)
        if self.store.get("digest").decode() != digest:
            reason = "the file is another one here than on rank 0: copy that one"
        reason = self._all("digest", reason)
        return plan, reason

    def _step(self, epoch: EpochPlan, number: int) -> str:
        """Hold an epoch's weights, and use them once all do; return why they are not used."""
        executor, reason = self.executor, ""
        write: Callable[[], None] | None = None
        try:
            if executor.lane < 0:
                executor.renew(0)
            prepare = write_prepares(epoch, term=0, epoch=number, lane=0)[self.rank]
            write = self.maps.stage_maps(prepare)
            executor.reserve(RankWork(self.rank, prepare.rounds, prepare.transfers))
            for index in range(prepare.rounds):
                executor.stage(index)
            executor.verify()
        except (EplbdError, RuntimeError) as error:
            reason = sentence(error)
        reason = self._all(f"epoch {number}", reason)
        if reason or write is None:
            executor.discard()
            return reason
        executor.commit()
        write()
        return ""

    def _all(self, what: str, reason: str) -> str:
        return self.agree(PrefixStore(what, self.store), reason)
