"""Put the agent's parts together for one rank of a torch engine.

Owns the agreement on the group's incarnation. Everything that the ranks must share goes through the
store of the EP group: it lives and dies with rank 0, as the group does.
"""

from __future__ import annotations

import os
import socket as sockets
import time
from contextlib import ExitStack
from dataclasses import dataclass

from torch._C._distributed_c10d import Store

from eplbd.core.messages import Counts, Dispatch
from eplbd.core.placement import Placement
from eplbd.worker.agent import AgentThread, Identity, Parts
from eplbd.worker.executor import Executor
from eplbd.worker.ring import HeatRing
from eplbd.worker.stager import Engine
from eplbd.worker.torch_register import TorchRegister
from eplbd.worker.torch_ring import TorchCounters
from eplbd.worker.torch_store import own_client

RENDEZVOUS_S = 60.0
"""Ranks attach when their model is loaded, and not all load equally fast."""


@dataclass(frozen=True, slots=True)
class Membership:
    """This rank's place in the EP group.

    store: the group's own, reachable from all its ranks. weighted: whether the engine splits an
    expert's tokens over its replicas as `Prepare.parts` says. counts: what the engine's layers
    count, and so how many columns the counters have.
    """

    group: str
    rank: int
    ranks: int
    store: Store
    dispatch: Dispatch = Dispatch.ALL_TO_ALL
    weighted: bool = False
    counts: Counts = Counts.RECEIVED


def attach(
    stack: ExitStack,
    socket: str,
    membership: Membership,
    placement: Placement,
    executor: Executor,
    engine: Engine,
    counters: TorchCounters,
) -> AgentThread:
    """Start this rank's agent, to end with `stack`; every rank of the group calls it once.

    socket: endpoint of the node's daemon, which need not be there. placement: in force now, equal
    on all ranks. counters: what the engine's layers add into. Raises RuntimeError where the store
    does not answer within RENDEZVOUS_S.
    """
    identity = Identity(
        group=membership.group,
        incarnation=_incarnation(membership),
        rank=membership.rank,
        node=sockets.gethostname(),
        dispatch=membership.dispatch,
        counts=membership.counts,
        weighted=membership.weighted,
    )
    register = stack.enter_context(TorchRegister(membership.store))
    parts = Parts(executor, engine, HeatRing(counters), register)
    return stack.enter_context(AgentThread(socket, identity, placement, parts))


def _incarnation(membership: Membership) -> str:
    """Agree on one name for this life of the group; a later life's is greater.

    Every attachment has a key of its own: the store may outlive one, and a rank that is quicker
    than rank 0 must not read the name of the life before.
    """
    client = own_client(membership.store, RENDEZVOUS_S)
    names = f"eplbd/{membership.group}/incarnation"
    attached = f"{names}/attached/{membership.rank}"
    key = f"{names}/{client.add(attached, 0)}"
    if membership.rank == 0:
        client.set(key, f"{time.time_ns():020d}-{os.getpid()}")
    name = client.get(key).decode()
    client.add(attached, 1)  # only now: who gave up waiting waits for the same name again
    return name
