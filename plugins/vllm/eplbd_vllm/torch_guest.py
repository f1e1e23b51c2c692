"""eplbd beside one rank of an engine: attached, counting, detached, attached again.

Owns the life of the agent in the worker's process, the agreement of the ranks that all attach or
none, and the promise that no failure to attach reaches the engine. It must not know which engine it
is (whose adapter hands over a `Survey`), how that calls it (`hooks`), nor the protocol.

Once an agent was started its hook is called around every forward, also after it has left: an epoch
that was decided flips at its forward whether or not anybody is there to tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch._C._distributed_c10d import PrefixStore, Store

from eplbd.core.placement import Placement
from eplbd.runtime.fixedmap import read_map
from eplbd.worker.agent import AgentThread
from eplbd.worker.stager import Engine
from eplbd.worker.torch_attach import RENDEZVOUS_S, Membership, attach
from eplbd.worker.torch_experts import ExpertTensors
from eplbd.worker.torch_p2p import Route, TorchP2PExecutor
from eplbd.worker.torch_ring import TorchCounters
from eplbd.worker.torch_store import own_client
from eplbd_vllm.door import knock
from eplbd_vllm.faults import sentence
from eplbd_vllm.settings import Settings
from eplbd_vllm.torch_opening import Walk
from eplbd_vllm.torch_weights import table

log = logging.getLogger("vllm.eplbd")


class Maps(Engine, Protocol):
    """What the engine's layers route by."""

    def reset(self, placement: Placement) -> None:
        """Put the maps of `placement` in force, all layers; between forwards, on their thread."""
        ...


class Heat(Protocol):
    """What the engine's layers counted; on the forward's thread and in its order, without a sync.

    counters: where the agent finds it; the same ones at each attachment.
    """

    counters: TorchCounters

    def collect(self) -> None:
        """Take what was counted since the last step for the forward that was just issued."""
        ...

    def drop(self) -> None:
        """Forget what was counted since the last step."""
        ...


@dataclass(frozen=True, slots=True)
class Survey:
    """What an adapter found of its rank: whatever may be refused was, and nothing is changed yet.

    placement: in force. take_over: makes eplbd the engine's balancer; what it hands to the stack
    happens once the agent has left. in_place_of: name of a balancer that the operator may look for.
    """

    experts: ExpertTensors
    placement: Placement
    maps: Maps
    heat: Heat
    take_over: Callable[[ExitStack], None]
    in_place_of: str = ""


class Guest:
    """eplbd in one worker: a `Visitor`, made when a model was loaded.

    Every rank of the EP group makes one, at the same point of its start. membership: its store is
    this kind of guest's own. survey: raises ConfigError or TransferError for what cannot be
    balanced, with a reason.
    """

    def __init__(
        self, membership: Membership, settings: Settings, survey: Callable[[], Survey]
    ) -> None:
        self._membership, self._settings, self._survey = membership, settings, survey
        self._attached = 0
        self._agent: AgentThread | None = None
        self._stack = ExitStack()
        self._heat: Heat | None = None
        self._initial: Placement | None = None
        self._last: Placement | None = None
        self._lost = False
        self.maps: Maps | None = None
        """What the layers route by; None before the first attachment."""
        self.executor: TorchP2PExecutor | None = None
        """What moves the weights; None before the first attachment."""

    @property
    def agent(self) -> AgentThread | None:
        """Who speaks for this rank; None while nobody does."""
        return self._agent

    @property
    def commits(self) -> int:
        """Epochs put in force on this rank since it attached."""
        return 0 if self.executor is None else self.executor.statistics().commits

    @property
    def forwards(self) -> int:
        """The shared clock."""
        return 0 if self._agent is None else self._agent.hook.forward

    # --- the worker's main thread, between forwards ---------------------------------------------

    def attach(self) -> str:
        """Attach; return why not, the same on every rank, empty if attached.

        Raises RuntimeError where the agent itself cannot be started.
        """
        self._attached += 1
        member = self._membership
        member = replace(member, store=PrefixStore(str(self._attached), member.store))
        complaint = ""
        parts: tuple[Survey, TorchP2PExecutor] | None = None
        try:
            found = self._survey()
            parts = found, self._mover(found.experts, member)
        except Exception as error:  # noqa: BLE001 - a supervisor: the other ranks wait to hear
            complaint = sentence(error)
        complaint = agree(member.store, member.rank, member.ranks, complaint)
        if complaint or parts is None:
            return complaint
        self._start(named(member), *parts)
        return ""

    def pause(self, *, lost: bool) -> None:
        """See `Visitor`. The agent leaves, the placement stays as it is."""
        self._lost = self._lost or lost
        self._detach()

    def resume(self, *, reloaded: bool) -> None:
        """See `Visitor`. Reloaded weights are where they were at first, and so are the maps."""
        if self._lost and not reloaded:
            return  # what is in the slots now is nobody's weights
        self._detach()  # an engine may tell twice that they are back
        if reloaded and self.maps is not None and self._initial is not None:
            # Not within the try: to serve these weights by other maps is worse than not to serve.
            self.maps.reset(self._initial)
            self._last = None
        self._lost = False
        try:
            reason = self.attach()
        except Exception as error:  # noqa: BLE001 - a supervisor: the engine serves without us
            reason = sentence(error)
        if reason and self._membership.rank == 0:
            log.warning("eplbd: the placement stays as it is from here on: %s", reason)

    def leave(self) -> None:
        """See `Visitor`."""
        self._stack.close()

    # --- around every forward -------------------------------------------------------------------

    def before_forward(self) -> None:
        """See `ForwardHook`."""
        if self._agent is not None:
            self._agent.hook.before_forward()

    def after_forward(self, tokens: int, *, dummy: bool, phase: int) -> None:
        """Account for the forward that was issued. tokens: of this rank, padding excluded."""
        agent, heat = self._agent, self._heat
        if agent is None or heat is None:
            return
        if dummy:
            heat.drop()  # tokens that nobody asked for
        else:
            heat.collect()
        agent.hook.after_forward(tokens, dummy=dummy, phase=phase)

    # --- within ---------------------------------------------------------------------------------

    def _mover(self, experts: ExpertTensors, member: Membership) -> TorchP2PExecutor:
        settings = self._settings
        return TorchP2PExecutor(
            experts,
            member.store,
            member.rank,
            member.ranks,
            experts_per_rank=settings.experts_per_rank,
            route=_route(settings.route, experts.device),
        )

    def _start(self, member: Membership, found: Survey, executor: TorchP2PExecutor) -> None:
        """Take the engine's place as its balancer, and let the agent run."""
        first = self._with_shares(found.placement)
        with ExitStack() as stack:
            found.take_over(stack)
            found.heat.drop()  # counted while nobody looked
            placement = self._opened(member, found, executor, first)
            self._agent = attach(
                stack,
                self._settings.socket,
                member,
                placement,
                executor,
                found.maps,
                found.heat.counters,
            )
            self._stack = stack.pop_all()
        self.maps, self.executor, self._heat = found.maps, executor, found.heat
        self._initial = self._initial or first
        if member.rank == 0:
            self._announce(member, found, executor)

    def _opened(
        self, member: Membership, found: Survey, executor: TorchP2PExecutor, held: Placement
    ) -> Placement:
        """Begin with the operator's placement, where there is one."""
        file = self._settings.opening
        if file is None:
            return held

        def all_of_us(store: Store, reason: str) -> str:
            return agree(store, member.rank, member.ranks, reason)

        store = PrefixStore("opening", own_client(member.store, RENDEZVOUS_S))
        buffers = self._settings.experts_per_rank
        walk = Walk(store, member.rank, executor, found.maps, buffers, all_of_us)
        return walk.to(lambda: read_map(file), held)

    def _with_shares(self, held: Placement) -> Placement:
        """What the maps hold; of its shares they say nothing, but the agent before knew."""
        last = self._last
        return last if last is not None and np.array_equal(last.slots, held.slots) else held

    def _detach(self) -> None:
        self._stack.close()
        if self._agent is not None:
            # All ranks pause between the same two forwards: a flip that was to come comes on none.
            self._last, self._agent = self._agent.machine.placement, None

    def _announce(self, member: Membership, found: Survey, executor: TorchP2PExecutor) -> None:
        log.info(
            "eplbd balances this engine%s: %d EP ranks, %s dispatch, %s, %d B per expert, route %s",
            f" in {found.in_place_of}'s place" if found.in_place_of else "",
            member.ranks,
            member.dispatch,
            table(found.experts.describe()),
            executor.expert_bytes,
            _route(self._settings.route, found.experts.device),
        )
        missing = knock(self._settings.socket)
        if missing:
            log.warning("eplbd: serving with the placement as it is: %s", missing)


def agree(store: Store, rank: int, ranks: int, complaint: str) -> str:
    """Tell the others whether this rank can attach; return why the group does not, if it does not.

    Over the store and with a deadline rather than by a collective: a rank on which the plugin is
    disabled never comes, and the engine must start all the same.
    """
    try:
        client = own_client(store, RENDEZVOUS_S)
        client.set(f"rank{rank}", complaint or "ready")
        for other in range(ranks):
            said = client.get(f"rank{other}").decode()
            if said != "ready":
                return said if other == rank else f"rank {other}: {said}"
    except RuntimeError as error:
        if complaint:
            return complaint
        return (
            f"not every rank came to attach within {RENDEZVOUS_S} s; is the plugin enabled on "
            f"all of them? ({sentence(error)[:200]})"
        )
    return ""


def named(member: Membership) -> Membership:
    """Return the member under its group's name: rank 0's, which `agree` has waited for."""
    client = own_client(member.store, RENDEZVOUS_S)
    if member.rank == 0:
        client.set("name", member.group)
        return member
    return replace(member, group=client.get("name").decode())


def _route(setting: str, device: torch.device) -> Route:
    if setting == "auto":
        return Route.DEVICE if device.type == "cpu" else Route.HOST
    return Route(setting)
