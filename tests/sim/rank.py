"""One simulated rank: the real `Agent`, its threads and the engine around it as plain state.

The engine's memory is modelled by value: a slot holds the `(layer, expert)` whose bytes it has, so
a wrong source, a buffer reused too soon or a slot routed to before its bytes came is seen as what
it is: wrong contents.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eplbd.core import messages as m
from eplbd.core.agent import Agent
from eplbd.core.agent_events import (
    AgentEvent,
    ArmMissed,
    ArmPlaced,
    AskRegister,
    Discard,
    Flipped,
    Heard,
    Neared,
    PlaceArm,
    PublishLeader,
    Reply,
    Reserve,
    Reserved,
    ReserveFailed,
    ResolveArm,
    RunRounds,
    SayHello,
    SayPulse,
    SeekLeader,
    Stand,
)
from eplbd.core.events import Tick
from eplbd.core.messages import Verdict
from eplbd.core.rounds import Col

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eplbd.core.placement import Placement

Content = tuple[int, int]
"""`(layer, expert)`: whose bytes a slot or buffer has."""

WRONG: Content = (-1, -1)


@dataclass
class Arm:
    """What the forward thread sees."""

    term: int
    epoch: int
    attempt: int
    at: int
    near: int
    verdict: Verdict | None = None
    woke: bool = False


@dataclass
class Job:
    """What the stager does: reserve, rounds or discard."""

    effect: Reserve | RunRounds | Discard
    round: int = 0
    done: set[tuple[int, ...]] = field(default_factory=set)
    broken: str = ""


class SimRank:
    """Rank of a simulated group. The world calls its methods as the schedule wants."""

    def __init__(
        self, rank: int, placement: Placement, incarnation: str, *, weighted: bool = False
    ) -> None:
        self.rank, self.incarnation, self.weighted = rank, incarnation, weighted
        self.node = "node0"
        self.agent = Agent(rank, placement)
        self.slots: dict[tuple[int, int], Content] = {
            (layer, slot): (layer, int(placement.slots[layer, rank, slot]))
            for layer in range(placement.layers)
            for slot in range(placement.slots_per_rank)
        }
        self.buffers: dict[int, Content] = {}
        self.reserved: m.Prepare | None = None
        self.map = placement
        self.forward = 0
        self.lane = 0
        self.arm: Arm | None = None
        self.stager: deque[Job] = deque()
        self.registrar: deque[AskRegister | PublishLeader | SeekLeader] = deque()
        self.outbox: list[m.FromAgent] = []
        self.stopped = self.masked = False
        self.register_held_until = 0.0
        self.refuse_next = ""

    # --- the agent thread -----------------------------------------------------------------------

    def step(self, event: AgentEvent) -> None:
        """Give the machine an event and perform its effects."""
        for effect in self.agent.step(event):
            match effect:
                case Reply(message):
                    self.outbox.append(message)
                case SayHello(term):
                    self.outbox.append(self.hello(term))
                case SayPulse():
                    self.outbox.append(m.Pulse(self.forward, masked=self.masked))
                case Stand():
                    self.outbox.append(self.stands())
                case Reserve() | RunRounds() | Discard():
                    self.stager.append(Job(effect))
                case AskRegister() | PublishLeader() | SeekLeader():
                    self.registrar.append(effect)
                case PlaceArm():
                    self._place_arm(effect)
                case ResolveArm(attempt, verdict):
                    assert self.arm is not None
                    assert self.arm.attempt == attempt
                    self.arm.verdict = verdict
        self.agent.check()

    def hello(self, term: int) -> m.Hello:
        """Say who this is."""
        placement = self.agent.placement
        return m.Hello(
            wire=m.WIRE_VERSION,
            wire_min=m.WIRE_VERSION_MIN,
            group="sim",
            incarnation=self.incarnation,
            rank=self.rank,
            ranks=placement.ranks,
            node=self.node,
            layers=placement.layers,
            experts=placement.experts,
            slots_per_rank=placement.slots_per_rank,
            term=term,
            expert_bytes=1,
            layout_digest="sim",
            weighted=self.weighted,
            leader=self.agent.contact.leader,
            leader_key=self.agent.contact.leader_key,
        )

    def stands(self) -> m.Stands:
        """Say how this stands."""
        agent = self.agent
        return m.Stands(
            agent.term,
            agent.epoch,
            agent.placement.digest,
            agent.standing,
            agent.pending,
            self.forward,
            self.lane,
            agent.placement.slots,
            None if agent.placement.shares is None else agent.placement.parts(),
        )

    def _place_arm(self, effect: PlaceArm) -> None:
        if effect.near <= self.forward:
            self.step(ArmMissed(effect.term, effect.epoch, effect.attempt, self.forward))
            return
        self.arm = Arm(effect.term, effect.epoch, effect.attempt, effect.at, effect.near)
        self.step(ArmPlaced(effect.term, effect.epoch, effect.attempt))

    def heard(self, message: m.FromLeader) -> None:
        """The leader's message arrives."""
        self.step(Heard(message))

    def tick(self, now: float) -> None:
        """Time goes on here."""
        self.step(Tick(now))

    # --- the stager thread ----------------------------------------------------------------------

    def reserve(self) -> None:
        """Perform the reservation at the head of the stager's queue."""
        job = self.stager.popleft()
        assert isinstance(job.effect, Reserve)
        prepare = job.effect.prepare
        if self.refuse_next:
            reason, self.refuse_next = self.refuse_next, ""
            self.step(ReserveFailed(prepare.term, prepare.epoch, reason))
            return
        self.lane = max(self.lane, prepare.lane)
        self.reserved = prepare
        self.buffers = {}
        self.step(Reserved(prepare.term, prepare.epoch))

    def discard(self) -> None:
        """Perform the discard at the head of the stager's queue."""
        job = self.stager.popleft()
        assert isinstance(job.effect, Discard)
        if self.reserved and self.reserved.epoch == job.effect.epoch:
            self.reserved = None
            self.buffers = {}

    def rounds(self) -> Job | None:
        """The rounds at the head of the stager's queue, if that is what it does."""
        if self.stager and isinstance(self.stager[0].effect, RunRounds):
            return self.stager[0]
        return None

    def transfers(self, round_index: int) -> NDArray[np.int32]:
        """Return this rank's rows of a round."""
        assert self.reserved is not None
        rows: NDArray[np.int32] = self.reserved.transfers
        mine: NDArray[np.int32] = rows[rows[:, Col.ROUND] == round_index]
        return mine

    def read(self, row: NDArray[np.int32]) -> Content:
        """Return the bytes a transfer sends."""
        if row[Col.SRC_BUFFER] >= 0:
            return self.buffers.get(int(row[Col.SRC_BUFFER]), WRONG)
        return self.slots[int(row[Col.LAYER]), int(row[Col.SRC_SLOT])]

    # --- the forward thread ---------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether the next forward waits for the register."""
        arm = self.arm
        return arm is not None and arm.verdict is None and self.forward + 1 >= arm.at

    def run_forward(self) -> None:
        """Run one forward; flip before it if it is the armed one."""
        self.forward += 1
        arm = self.arm
        if arm is None:
            return
        if not arm.woke and self.forward >= arm.near and arm.verdict is None:
            arm.woke = True
            self.step(Neared(arm.term, arm.epoch, arm.attempt))
        if self.forward < arm.at:
            return
        if arm.verdict is Verdict.COMMIT:
            self._flip(arm)
        self.arm = None

    def _flip(self, arm: Arm) -> None:
        assert self.reserved is not None, f"rank {self.rank} flips without a reservation"
        prepare = self.reserved
        assert self.weighted or prepare.parts is None
        wrong = f"rank {self.rank} flips epoch {prepare.epoch} in {arm.epoch}"
        assert prepare.epoch == arm.epoch, wrong
        for row in prepare.transfers[prepare.transfers[:, Col.DST] == self.rank]:
            place = int(row[Col.LAYER]), int(row[Col.DST_SLOT])
            self.slots[place] = self.buffers.get(int(row[Col.DST_BUFFER]), WRONG)
        self.map = self.map.with_layers(prepare.layers, prepare.slots, prepare.parts)
        self.reserved, self.buffers = None, {}
        self.step(Flipped(arm.term, arm.epoch, self.forward))

    def check_contents(self) -> None:
        """Every slot must hold what the map in force routes to it."""
        for (layer, slot), content in self.slots.items():
            expected = (layer, int(self.map.slots[layer, self.rank, slot]))
            assert content == expected, (
                f"rank {self.rank} layer {layer} slot {slot}: routed {expected}, holds {content} "
                f"at forward {self.forward}"
            )
