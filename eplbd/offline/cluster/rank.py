"""One simulated rank: the real `Agent`, its threads and the engine around it as plain state.

The engine's memory is modelled by value: a slot holds the code of the (layer, expert) whose bytes
it has, so that a wrong source, a buffer reused too soon or a slot routed to before its bytes came
is seen as what it is: wrong contents. Must not know time nor networks: its owner lets each thread
act, and takes what it has to say.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core import agent_events as e
from eplbd.core import messages as m
from eplbd.core.agent import Agent
from eplbd.core.rounds import Col
from eplbd.offline.cluster.laws import BrokenLawError, demand

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eplbd.core.placement import Placement

Question = e.AskRegister | e.PublishLeader | e.SeekLeader
"""What a rank wants of the group's store."""

WRONG = -1
"""No expert's bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a rank says of itself."""

    group: str
    incarnation: str
    rank: int
    node: str
    expert_bytes: int = 1
    forward_s: float = 0.0
    weighted: bool = False
    """Whether it takes shares."""


@dataclass
class Job:
    """What the stager does: reserve, rounds or discard."""

    effect: e.Reserve | e.RunRounds | e.Discard
    round: int = 0
    done: set[tuple[int, ...]] = field(default_factory=set)
    broken: str = ""
    """What ended rounds before their bytes came: a real transport fails, the simulated one may."""


class Rank:
    """A rank of a simulated group. `forward` is written by the engine, for all ranks alike."""

    def __init__(self, member: Member, placement: Placement) -> None:
        self.member, self.rank = member, member.rank
        self.agent = Agent(member.rank, placement)
        self.map = placement
        self._codes = np.arange(placement.layers)[:, None] * placement.experts
        self.slots: NDArray[np.int64] = placement.slots[:, self.rank] + self._codes
        self.buffers: dict[int, int] = {}
        self.reserved: m.Prepare | None = None
        self.forward = self.lane = 0
        self.arm: e.PlaceArm | None = None
        self.verdict: m.Verdict | None = None
        self.woke = False
        self.stager: deque[Job] = deque()
        self.questions: deque[Question] = deque()
        self.outbox: deque[m.FromAgent] = deque()
        self.heat: deque[m.HeatReport] = deque()
        """Waits for the agent thread to wake."""
        self.stall_s = 0.0
        """What the last flip waited for its verdict."""

    # --- the agent thread -----------------------------------------------------------------------

    def step(self, event: e.AgentEvent) -> None:
        """Give the machine an event and perform its effects."""
        for effect in self.agent.step(event):
            match effect:
                case e.Reply(message):
                    self.outbox.append(message)
                case e.SayHello(term):
                    self.outbox.append(self.hello(term))
                case e.SayPulse():
                    self.outbox.append(self.pulse())
                case e.Stand():
                    self.outbox.append(self.stands())
                case e.Reserve() | e.RunRounds() | e.Discard():
                    self.stager.append(Job(effect))
                case e.AskRegister() | e.PublishLeader() | e.SeekLeader():
                    self.questions.append(effect)
                case e.PlaceArm():
                    self._place_arm(effect)
                case e.ResolveArm(attempt, verdict):
                    demand(
                        self.arm is not None and self.arm.attempt == attempt,
                        f"rank {self.rank} resolves attempt {attempt}, armed is {self.arm}",
                    )
                    self.verdict = verdict
        self.agent.check()

    def hello(self, term: int) -> m.Hello:
        """Say who this is."""
        placement, member, contact = self.agent.placement, self.member, self.agent.contact
        return m.Hello(
            wire=m.WIRE_VERSION,
            wire_min=m.WIRE_VERSION_MIN,
            group=member.group,
            incarnation=member.incarnation,
            rank=self.rank,
            ranks=placement.ranks,
            node=member.node,
            layers=placement.layers,
            experts=placement.experts,
            slots_per_rank=placement.slots_per_rank,
            term=term,
            expert_bytes=member.expert_bytes,
            layout_digest="simulated",
            weighted=member.weighted,
            leader=contact.leader,
            leader_key=contact.leader_key,
        )

    def pulse(self) -> m.Pulse:
        """Say that this lives."""
        return m.Pulse(self.forward, self.member.forward_s)

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

    def _place_arm(self, effect: e.PlaceArm) -> None:
        about = effect.term, effect.epoch, effect.attempt
        if effect.near <= self.forward:
            self.step(e.ArmMissed(*about, self.forward))
            return
        self.arm, self.verdict, self.woke = effect, None, False
        self.step(e.ArmPlaced(*about))

    # --- the stager thread ----------------------------------------------------------------------

    @property
    def job(self) -> e.Reserve | e.RunRounds | e.Discard | None:
        """What the stager does now."""
        return self.stager[0].effect if self.stager else None

    def reserve(self) -> None:
        """Perform the reservation at the head of the stager's queue."""
        effect = self.stager.popleft().effect
        if not isinstance(effect, e.Reserve):
            raise BrokenLawError(f"rank {self.rank} reserves for {effect}")
        self.reserved, self.buffers = effect.prepare, {}
        self.lane = max(self.lane, effect.prepare.lane)
        self.step(e.Reserved(effect.prepare.term, effect.prepare.epoch))

    def discard(self) -> None:
        """Perform the discard at the head of the stager's queue."""
        effect = self.stager.popleft().effect
        if not isinstance(effect, e.Discard):
            raise BrokenLawError(f"rank {self.rank} discards for {effect}")
        if self.reserved is not None and self.reserved.epoch == effect.epoch:
            self.reserved, self.buffers = None, {}

    def rounds(self) -> Job | None:
        """The rounds at the head of the stager's queue, if that is what it does."""
        if self.stager and isinstance(self.stager[0].effect, e.RunRounds):
            return self.stager[0]
        return None

    def transfers(self, round_index: int) -> NDArray[np.int32]:
        """Return this rank's rows of a round."""
        if self.reserved is None:
            raise BrokenLawError(f"rank {self.rank} has rounds and no reservation")
        rows: NDArray[np.int32] = self.reserved.transfers
        mine: NDArray[np.int32] = rows[rows[:, Col.ROUND] == round_index]
        return mine

    def read(self, row: NDArray[np.int32]) -> int:
        """Return the bytes a transfer sends."""
        if row[Col.SRC_BUFFER] >= 0:
            return self.buffers.get(int(row[Col.SRC_BUFFER]), WRONG)
        return int(self.slots[row[Col.LAYER], row[Col.SRC_SLOT]])

    def expected(self, row: NDArray[np.int32]) -> int:
        """Return the bytes a transfer should bring."""
        return int(self._codes[row[Col.LAYER], 0] + row[Col.EXPERT])

    # --- the forward thread ---------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether the next forward waits for the register."""
        return self.arm is not None and self.verdict is None and self.forward + 1 >= self.arm.at

    def run_forward(self) -> None:
        """Run one forward; flip before it if it is the armed one."""
        self.forward += 1
        arm = self.arm
        if arm is None:
            return
        if not self.woke and self.forward >= arm.near and self.verdict is None:
            self.woke = True
            self.step(e.Neared(arm.term, arm.epoch, arm.attempt))
        if self.forward < arm.at:
            return
        commit = self.verdict is m.Verdict.COMMIT
        self.arm = None
        if commit:
            self._flip(arm)

    def _flip(self, arm: e.PlaceArm) -> None:
        prepare = self.reserved
        if prepare is None or prepare.epoch != arm.epoch:
            raise BrokenLawError(f"rank {self.rank} flips {arm} with {prepare} reserved")
        for row in prepare.transfers[prepare.transfers[:, Col.DST] == self.rank]:
            buffer = self.buffers.get(int(row[Col.DST_BUFFER]), WRONG)
            self.slots[row[Col.LAYER], row[Col.DST_SLOT]] = buffer
        self.map = self.next_map(prepare)
        self.reserved, self.buffers = None, {}
        self.check_contents()
        self.step(e.Flipped(arm.term, arm.epoch, self.forward, self.stall_s))
        self.stall_s = 0.0

    def next_map(self, prepare: m.Prepare) -> Placement:
        """Return the map that a flip to what was prepared brings into force."""
        target = self.agent.target
        if target is None:
            raise BrokenLawError(
                f"rank {self.rank} flips epoch {prepare.epoch}, its agent does not"
            )
        return target

    def check_contents(self) -> None:
        """Demand that every slot holds what the map in force routes to it."""
        wrong = self.slots != self.map.slots[:, self.rank] + self._codes
        if wrong.any():
            where = np.argwhere(wrong)[0].tolist()
            raise BrokenLawError(
                f"rank {self.rank} forward {self.forward}: (layer, slot) {where} is routed to and "
                "holds other bytes"
            )
