"""The agent's epoch machine: one rank's side of the transaction, and all that changes its state.

    IDLE -> PREPARING -> PREPARED -> STAGING -> STAGED -> ARMED -> CONFIRMED -> IDLE, new epoch
                                                  ^         |
                                                  +---------+  register: abort, or a later attempt

Rules, each of which a test breaks on purpose:

1. Nothing is acknowledged before it is true: `Prepared` follows the reservation, `Staged` the
   verified checksums.
2. An agent that promised to stage (PREPARED) may not walk away by itself: a peer may already wait
   for its bytes. Left alone, it asks the register (gate `stage`), and if that says commit it
   carries the rounds through. The leader aborts a PREPARED agent only before it asked that gate.
3. An agent that promised to flip (ARMED) may neither flip nor walk away by itself: the register
   (gate `flip` of the attempt) decides.
4. CONFIRMED has no way back: some rank may have flipped.
5. The term only grows. What a higher term left behind is an orphan and ends by rules 2 and 3.

Must not know threads, sockets, clocks or tensors.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from eplbd.core import agent_events as e
from eplbd.core import messages as m
from eplbd.core.contact import Contact
from eplbd.core.events import Tick
from eplbd.core.messages import Gate, Standing, Verdict
from eplbd.core.prepare import check_prepare
from eplbd.errors import LocalProtocolError, PlacementError

if TYPE_CHECKING:
    from eplbd.core.epoch import Order
    from eplbd.core.placement import Placement

STORY_LENGTH = 64  # events kept for the story of an error; an epoch without faults has nine


class Agent:
    """One rank's machine: `step(event) -> effects`.

    placement: in force when the agent attaches, equal on all ranks. heartbeat_s, silence_s: until
    a leader's `Welcome` brings its own.
    """

    def __init__(
        self, rank: int, placement: Placement, *, heartbeat_s: float = 0.5, silence_s: float = 3.0
    ) -> None:
        self.rank = rank
        self.placement = placement
        self.standing = Standing.IDLE
        self.term = self.epoch = self.attempt = self.at = 0
        self.begun = (0, 0)  # term and epoch of the newest work ever taken on
        self.work: m.Prepare | None = None
        self.target: Placement | None = None
        self.doomed = False  # the epoch will be discarded once its rounds are through
        self.orphaned = False  # the leader that prepared it is gone: the register ends it
        self.contact = Contact(rank, heartbeat_s=heartbeat_s, silence_s=silence_s)
        self.stale = 0
        self.story: deque[object] = deque(maxlen=STORY_LENGTH)
        self.out: list[e.AgentEffect] = []

    def step(self, event: e.AgentEvent) -> list[e.AgentEffect]:
        """Take one event, return what must be done, in order."""
        self.out = []
        match event:
            case Tick(now):
                if self.contact.silent(now):
                    self._disconnect()
                self.out += self.contact.speak(self.term)
            case e.LeaderFound():
                self.contact.found(event)
            case e.Heard(message):
                if not isinstance(message, m.Beat):
                    self.story.append(message)
                self._heard(message)
            case e.RegisterAnswered() | e.RegisterFailed():
                self.story.append(event)
                self._register(event)
            case _:
                self.story.append(event)
                self._happened(event)
        return self.out

    @property
    def connected(self) -> bool:
        """Whether a leader has taken this rank in and is heard of."""
        return self.contact.connected

    @property
    def pending(self) -> int:
        """Epoch under way, 0 if none."""
        return self.work.epoch if self.work else 0

    # --- the leader speaks ----------------------------------------------------------------------

    def _heard(self, message: m.FromLeader) -> None:
        self.contact.heard()
        match message:
            case m.Door():
                self.out += self.contact.told(message)
            case m.Greet() | m.Refused():
                self._disconnect()
            case m.Welcome():
                self._welcome(message)
            case m.Beat(term):
                if not self.connected or term != self.term:
                    self._disconnect()
            case _ if message.term != self.term:
                self.stale += 1
            case _:
                self._ordered(message)

    def _ordered(self, message: Order) -> None:
        """Obey an order of the term in force."""
        match message:
            case m.Prepare():
                self._prepare(message)
            case m.Decide(term, epoch, gate, attempt, verdict):
                self.out.append(e.AskRegister(term, epoch, gate, attempt, verdict))
            case _ if not self._is_ours(message):
                self._not_pending(message)
            case m.Stage():
                self._stage(message)
            case m.Arm():
                self._arm(message)
            case m.Confirm():
                self._confirm(message)
            case m.Abort():
                self._abort()

    def _is_ours(self, message: Order) -> bool:
        """Whether it is about the work under way; an orphan's number may be given out again."""
        key = message.term, message.epoch
        return self.work is not None and (self.work.term, self.work.epoch) == key

    def _welcome(self, message: m.Welcome) -> None:
        if message.term < self.term:
            self.stale += 1
            return
        self.contact.welcomed(message)
        if message.term > self.term:
            self.term = message.term
            self._orphan()
        self.out.append(e.Stand())

    def _prepare(self, message: m.Prepare) -> None:
        if self._is_ours(message):
            if self.standing is Standing.PREPARED:
                self._reply(m.Prepared(self.term, message.epoch))
            return
        if message.epoch <= self.epoch or (message.term, message.epoch) <= self.begun:
            # The second also knows epochs that were dropped: an order may arrive late and again.
            self.stale += 1
            return
        if self.work is not None:
            self._nack(message.epoch, f"epoch {self.pending} is still {self.standing}")
            self.out.append(e.Stand())  # the leader may have closed that one without this rank
            return
        try:
            self.target = check_prepare(message, self.placement, self.rank)
        except PlacementError as error:
            self._nack(message.epoch, str(error))
            return
        self.work, self.standing = message, Standing.PREPARING
        self.begun = (message.term, message.epoch)
        self.doomed = self.orphaned = False
        self.attempt = 0
        self.out.append(e.Reserve(message))

    def _stage(self, message: m.Stage) -> None:
        match self.standing:
            case Standing.PREPARED:
                self._run_rounds(message.stride)
            case Standing.STAGED:
                self._reply(m.Staged(self.term, message.epoch))
            case Standing.FAILED:
                self._nack(message.epoch, "rounds failed")

    def _arm(self, message: m.Arm) -> None:
        match self.standing:
            case Standing.STAGED if message.attempt > self.attempt:
                self._place_arm(message)
            case Standing.ARMED if message.attempt == self.attempt:
                self._reply(m.Armed(self.term, message.epoch, message.attempt))
            case Standing.ARMED if message.attempt > self.attempt:
                # A later attempt exists only after the register holds abort for this one.
                self._disarm()
                self._place_arm(message)
            case Standing.FAILED:
                self._nack(message.epoch, "rounds failed")
            case Standing.STAGED:
                # This attempt was revoked here, and the leader has not heard of it.
                self._reply(m.Late(self.term, message.epoch, message.attempt, self.at))
            case _:
                self.stale += 1

    def _confirm(self, message: m.Confirm) -> None:
        if self.standing is Standing.ARMED and message.attempt == self.attempt:
            self._confirmed()
        else:
            self.stale += 1

    def _abort(self) -> None:
        match self.standing:
            case Standing.PREPARING | Standing.STAGING:
                self.doomed = True
            case Standing.PREPARED | Standing.STAGED | Standing.FAILED:
                self._drop()
            case Standing.ARMED:
                # The leader had abort written for the attempt before it said so.
                self._disarm()
                self._drop()
            case _:
                self.stale += 1

    def _not_pending(self, message: Order) -> None:
        """Answer again for an epoch that is over here, so that a lost answer costs one resend."""
        if message.epoch == self.epoch:
            self._reply(m.Committed(self.term, self.epoch, self.placement.digest, self.at))
        elif isinstance(message, m.Abort):
            self._reply(m.Dropped(self.term, message.epoch))
        else:
            self._nack(message.epoch, "no such epoch here")

    # --- the rank's own threads answer ----------------------------------------------------------

    def _happened(self, event: e.OfWork) -> None:
        if isinstance(event, e.Neared) and event.epoch != self.pending:
            return  # the forward thread told it while the epoch ended
        if self.work is None or event.epoch != self.pending:
            self._impossible(event)
        match self.standing, event:
            case Standing.PREPARING, e.Reserved():
                self._reserved()
            case Standing.PREPARING, e.ReserveFailed(_, epoch, reason, lane_broken):
                self._nack(epoch, reason, lane_broken=lane_broken)
                self._drop(say=False)
            case Standing.STAGING, e.RoundsDone() | e.RoundsFailed():
                self._rounds_over(event)
            case Standing.STAGED, e.ArmPlaced(_, epoch, attempt):
                self.standing, self.attempt = Standing.ARMED, attempt
                self._reply(m.Armed(self.term, epoch, attempt))
            case Standing.STAGED, e.ArmMissed(_, epoch, attempt, forward):
                self._reply(m.Late(self.term, epoch, attempt, forward))
            case Standing.ARMED, e.Neared(_, epoch, attempt) if attempt == self.attempt:
                self._ask(Gate.FLIP)
            case Standing.CONFIRMED, e.Flipped():
                self._flipped(event)
            case _, e.Neared():
                pass  # answered or revoked in the meantime
            case _:
                self._impossible(event)

    def _reserved(self) -> None:
        self.standing = Standing.PREPARED
        if self.doomed:
            self._drop()
        elif self.orphaned:
            self._ask(Gate.STAGE)
        else:
            self._reply(m.Prepared(self.term, self.pending))

    def _rounds_over(self, event: e.RoundsDone | e.RoundsFailed) -> None:
        if self.doomed:
            self._drop()
        elif isinstance(event, e.RoundsFailed):
            self.standing = Standing.FAILED
            self._nack(event.epoch, event.reason, lane_broken=event.lane_broken)
        else:
            self.standing = Standing.STAGED
            figures = event.forward, event.stage_s, event.bytes_received, event.transfer_s
            self._reply(m.Staged(self.term, event.epoch, *figures))

    def _flipped(self, event: e.Flipped) -> None:
        assert self.target is not None
        self.epoch, self.placement, self.at = event.epoch, self.target, event.at
        self._forget_work()
        if event.term != self.term:
            self.out.append(e.Stand())
        else:
            held = self.placement.digest
            self._reply(m.Committed(self.term, self.epoch, held, event.at, event.stall_s))

    def _register(self, event: e.RegisterAnswered | e.RegisterFailed) -> None:
        term, epoch, gate, attempt = event.term, event.epoch, event.gate, event.attempt
        mine = self.work is not None and (term, epoch) == (self.work.term, self.work.epoch)
        if isinstance(event, e.RegisterFailed):
            self._reply(m.Undecided(term, epoch, gate, attempt, event.reason))
            if mine and self.orphaned and self.standing is Standing.PREPARED:
                self._ask(Gate.STAGE)
            elif mine and self.standing is Standing.ARMED and attempt == self.attempt:
                self._ask(Gate.FLIP)
            return
        self._reply(m.Decided(term, epoch, gate, attempt, event.verdict))
        if not mine:
            return
        commit = event.verdict is Verdict.COMMIT
        match gate, self.standing:
            case Gate.STAGE, Standing.PREPARED if commit:
                self._run_rounds(1)
            case Gate.STAGE, Standing.PREPARED:
                self._drop()
            case Gate.FLIP, Standing.ARMED if attempt == self.attempt:
                if commit:
                    self._confirmed()
                else:
                    self._disarm()
                    if self.orphaned:
                        self._drop()
            case _:
                pass

    # --- loss -----------------------------------------------------------------------------------

    def _disconnect(self) -> None:
        """Nobody leads: end what can be ended, and look for a leader."""
        if self.contact.lost():
            self._orphan()

    def _orphan(self) -> None:
        match self.standing:
            case Standing.IDLE | Standing.CONFIRMED:
                return
            case Standing.STAGED | Standing.FAILED:
                self._drop()
                return
            case Standing.PREPARED:
                self._ask(Gate.STAGE)
            case Standing.STAGING:
                self.doomed = True
            case Standing.ARMED:
                self._ask(Gate.FLIP)
            case Standing.PREPARING:
                pass  # asks when it is prepared
        self.orphaned = True

    # --- steps shared by several transitions ----------------------------------------------------

    def _run_rounds(self, stride: int) -> None:
        self.standing, self.doomed = Standing.STAGING, self.doomed or self.orphaned
        assert self.work is not None
        self.out.append(e.RunRounds(self.work.term, self.pending, stride))

    def _place_arm(self, message: m.Arm) -> None:
        self.at, near = message.at, message.at - message.guard
        self.out.append(e.PlaceArm(self.term, message.epoch, message.attempt, message.at, near))

    def _disarm(self) -> None:
        self.standing = Standing.STAGED
        self.out.append(e.ResolveArm(self.attempt, Verdict.ABORT))

    def _confirmed(self) -> None:
        self.standing = Standing.CONFIRMED
        self.out.append(e.ResolveArm(self.attempt, Verdict.COMMIT))

    def _ask(self, gate: Gate) -> None:
        """Propose abort, and learn what holds."""
        assert self.work is not None
        attempt = self.attempt if gate is Gate.FLIP else 0
        self.out.append(e.AskRegister(self.work.term, self.pending, gate, attempt, Verdict.ABORT))

    def _drop(self, *, say: bool = True) -> None:
        assert self.work is not None
        term, epoch = self.work.term, self.work.epoch
        self.out.append(e.Discard(term, epoch))
        self._forget_work()
        if term != self.term:
            self.out.append(e.Stand())
        elif say:
            self._reply(m.Dropped(self.term, epoch))

    def _forget_work(self) -> None:
        self.work = self.target = None
        self.standing, self.attempt = Standing.IDLE, 0
        self.doomed = self.orphaned = False

    def _nack(self, epoch: int, reason: str, *, lane_broken: bool = False) -> None:
        self._reply(m.Nack(self.term, epoch, reason, lane_broken))

    def _reply(self, message: m.FromAgent) -> None:
        self.out.append(e.Reply(message))

    def _impossible(self, event: e.OfWork) -> None:
        story = "\n  ".join([f"rank {self.rank} is {self.standing}", *map(repr, self.story)])
        raise LocalProtocolError(f"{event} cannot happen\n  {story}")

    def check(self) -> None:
        """Assert the invariants; tests call it after each step."""
        idle = self.standing is Standing.IDLE
        assert idle == (self.work is None) == (self.target is None)
        assert self.work is None or self.work.epoch > self.epoch
        assert self.work is None or self.work.term <= self.term
        assert self.standing is not Standing.ARMED or self.attempt > 0
        assert not idle or not (self.doomed or self.orphaned)
