"""The leader's epoch machine: one transaction over all ranks, and all that changes its state.

    PREPARE -> OPEN -> STAGE -> ARM -> DECIDE -> COMMIT -> SETTLED
       |        |        |     ^  |      |
       |        |        |     |  v      |
       |        |        |     REVOKE <--+
       +--------+--------+-----+---------> CLOSE -> ABORTED

OPEN, REVOKE and DECIDE ask the decision register through an agent (the scribe); what it holds is
final, whatever was proposed.

Rules, each of which a test breaks on purpose:

1. A phase ends when every rank has acknowledged it, never before.
2. `Abort` is sent only where no rank can commit: before gate `stage` was asked for, after it said
   abort, after all rounds are over and no attempt is open, or after the register holds abort for
   every attempt. Giving up is a write.
3. After `commit` is in the register there is no way but forward: `Confirm` until all committed.
4. A message of another term, epoch or attempt matches nothing.

Must not know sessions, time but `Tick`, nor how messages travel: `say` holds `(rank, message)`
pairs for the owner to send.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from eplbd.core import messages as m
from eplbd.core.epoch import ASKING, ENDED, Answer, Phase
from eplbd.core.messages import Gate, Verdict
from eplbd.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplbd.core.settings import EpochSettings

RESEND_BACKOFF_MAX = 8
"""Resends slow down to this multiple of `resend_s`: a stopped peer's queue is not filled."""

MARGIN_GROWTH_MAX = 32
"""The margin doubles with each attempt up to this factor."""

STORY_LENGTH = 256


class EpochLeader:
    """One epoch. The owner feeds `heard`, `lost`, `back`, `tick`, `give_up`, and sends `say`.

    prepares: one per rank, all of the same term, epoch and target. forward: newest forward known;
    the owner keeps it fresh. stride: forwards per round, from the pacer. now: seconds, monotonic.
    """

    def __init__(
        self,
        prepares: Sequence[m.Prepare],
        settings: EpochSettings,
        *,
        forward: int,
        stride: int,
        now: float,
    ) -> None:
        self.prepares, self.settings = prepares, settings
        self.term, self.epoch = prepares[0].term, prepares[0].epoch
        self.target_digest = prepares[0].target_digest
        self.ranks = range(len(prepares))
        self.alive = set(self.ranks)
        self.forward, self.stride = forward, stride
        self.phase = Phase.PREPARE
        self.deadline = self.resend_at = self.resend_s = 0.0
        self.waiting: set[int] = set()
        self.proposal = Verdict.COMMIT
        self.scribe = -1
        self.attempt = self.at = 0
        self.reason = ""
        self.failed = self.lane_broken = self.overdue = False
        self.diverged: dict[int, str] = {}
        self.stall_s = 0.0
        self.stale = 0
        self.entered = {Phase.PREPARE: now}
        self.now = now
        self.story: deque[tuple[float, object]] = deque(maxlen=STORY_LENGTH)
        self.say: list[tuple[int, m.FromLeader]] = []
        self._enter(Phase.PREPARE)

    @property
    def ended(self) -> bool:
        """Whether the transaction is over; `phase` says how."""
        return self.phase in ENDED

    # --- events ---------------------------------------------------------------------------------

    def heard(self, rank: int, message: Answer | m.Stands) -> None:
        """Take one rank's answer; anything but an answer of this epoch is counted as stale."""
        self.story.append((self.now, (rank, message)))
        if isinstance(message, m.Stands):
            self._stands(rank, message)
        elif (message.term, message.epoch) != (self.term, self.epoch):
            self.stale += 1
        else:
            self._answered(rank, message)

    def _answered(self, rank: int, message: Answer) -> None:
        match message:
            case m.Prepared():
                self._acknowledged(rank, Phase.PREPARE)
            case m.Staged(forward=forward):
                self.forward = max(self.forward, forward)
                self._acknowledged(rank, Phase.STAGE)
            case m.Armed(attempt=attempt):
                self._acknowledged(rank, Phase.ARM if attempt == self.attempt else None)
            case m.Late():
                self._late(rank, message)
            case m.Nack():
                self._nacked(rank, message)
            case m.Decided():
                self._decided(rank, message)
            case m.Undecided():
                if self.phase in ASKING:
                    self._ask()
            case m.Committed(digest=digest, stall_s=stall_s):
                self._committed(rank, digest, stall_s)
            case m.Dropped():
                self._dropped(rank)

    def tick(self, now: float) -> None:
        """Let time pass: resend what is unanswered, give up what is overdue."""
        self.now = now
        if self.ended:
            return
        if now >= self.deadline:
            self._timed_out()
        if now >= self.resend_at:
            self._resend()

    def lost(self, rank: int) -> None:
        """The session with a rank is gone."""
        self.alive.discard(rank)
        self.story.append((self.now, (rank, "lost")))
        match self.phase:
            case Phase.PREPARE | Phase.OPEN | Phase.ARM:
                self.give_up(f"rank {rank} was lost")
            case Phase.STAGE:
                self._fail(f"rank {rank} was lost while staging", lane_broken=True)
                self._acknowledged(rank, Phase.STAGE)
            case Phase.CLOSE:
                self._acknowledged(rank, Phase.CLOSE)
            case _:
                pass

    def back(self, rank: int) -> None:
        """The session with a rank stands again."""
        self.alive.add(rank)

    def give_up(self, reason: str) -> None:
        """Abandon the epoch if that is still possible; what is in the register wins."""
        self._fail(reason)
        match self.phase:
            case Phase.PREPARE:
                self._enter(Phase.CLOSE)
            case Phase.OPEN:
                self.proposal = Verdict.ABORT
                self._ask()
            case Phase.ARM:
                self._revoke()
            case _:
                pass

    # --- transitions ----------------------------------------------------------------------------

    def _acknowledged(self, rank: int, phase: Phase | None) -> None:
        if phase is not self.phase:
            self.stale += 1
            return
        self.waiting.discard(rank)
        if self.waiting:
            return
        match self.phase:
            case Phase.PREPARE:
                self._enter(Phase.OPEN)
            case Phase.STAGE:
                self._enter(Phase.CLOSE if self.failed else Phase.ARM)
            case Phase.ARM:
                self._enter(Phase.DECIDE)
            case Phase.COMMIT:
                self._enter(Phase.SETTLED)
            case Phase.CLOSE:
                self._enter(Phase.ABORTED)
            case _:
                pass

    def _nacked(self, rank: int, message: m.Nack) -> None:
        reason = f"rank {rank}: {message.reason}"
        match self.phase:
            case Phase.PREPARE | Phase.OPEN | Phase.ARM:
                self.lane_broken |= message.lane_broken
                self.give_up(reason)
            case Phase.STAGE:
                self._fail(reason, lane_broken=message.lane_broken)
                self._acknowledged(rank, Phase.STAGE)
            case _:
                self.stale += 1

    def _late(self, rank: int, message: m.Late) -> None:
        self.forward = max(self.forward, message.forward)
        if self.phase is Phase.ARM and message.attempt == self.attempt:
            self.reason = f"rank {rank} was at forward {message.forward} when armed for {self.at}"
            self._revoke()

    def _decided(self, rank: int, message: m.Decided) -> None:
        commit = message.verdict is Verdict.COMMIT
        match message.gate, self.phase:
            case Gate.STAGE, Phase.OPEN if commit:
                self._enter(Phase.STAGE)
            case Gate.STAGE, Phase.PREPARE | Phase.OPEN if not commit:
                self._fail(self.reason or f"rank {rank} ended the epoch before staging")
                self._enter(Phase.CLOSE)
            case Gate.FLIP, Phase.ARM | Phase.REVOKE | Phase.DECIDE if (
                message.attempt == self.attempt
            ):
                if commit:
                    self._enter(Phase.COMMIT)
                else:
                    self._next_attempt()
            case _:
                self.stale += 1

    def _next_attempt(self) -> None:
        if len(self.alive) < len(self.ranks):
            self._fail(f"ranks {sorted(set(self.ranks) - self.alive)} were lost while arming")
        if self.failed or self.attempt >= self.settings.arm_attempts:
            self._fail(self.reason or f"no commit in {self.attempt} attempts")
            self._enter(Phase.CLOSE)
        else:
            self._enter(Phase.ARM)

    def _revoke(self) -> None:
        self.proposal = Verdict.ABORT
        self._enter(Phase.REVOKE)

    def _committed(self, rank: int, digest: str, stall_s: float) -> None:
        if digest != self.target_digest:
            self.diverged[rank] = digest
        self.stall_s = max(self.stall_s, stall_s)
        if self.phase in (Phase.REVOKE, Phase.DECIDE):
            # A rank flips only on commit: the register's answer to us was lost or is under way.
            self._enter(Phase.COMMIT)
        self._acknowledged(rank, Phase.COMMIT)

    def _dropped(self, rank: int) -> None:
        match self.phase:
            case Phase.CLOSE:
                self._acknowledged(rank, Phase.CLOSE)
            case Phase.PREPARE | Phase.OPEN | Phase.ARM:
                self.give_up(f"rank {rank} dropped the epoch")
            case Phase.STAGE:
                self._fail(f"rank {rank} dropped the epoch")
                self._acknowledged(rank, Phase.STAGE)
            case _:
                self.stale += 1

    def _stands(self, rank: int, message: m.Stands) -> None:
        """A rank that came back says what it holds."""
        self.forward = max(self.forward, message.forward)
        if message.epoch == self.epoch:
            self._committed(rank, message.digest, 0.0)
        elif message.pending != self.epoch and self.phase is not Phase.PREPARE:
            self._dropped(rank)

    # --- time -----------------------------------------------------------------------------------

    def _timed_out(self) -> None:
        missing = sorted(self.waiting)
        match self.phase:
            case Phase.PREPARE | Phase.ARM | Phase.OPEN:
                self.reason = f"no answer to {self.phase} from ranks {missing}"
                if self.phase is Phase.ARM:
                    self._revoke()
                else:
                    self.give_up(self.reason)
            case Phase.STAGE:
                self._fail(f"ranks {missing} did not finish staging", lane_broken=True)
                self._enter(Phase.CLOSE)
            case Phase.DECIDE:
                self.reason = "the register did not answer"
                self._revoke()
            case _:
                # REVOKE, COMMIT and CLOSE can only wait; the owner reports it.
                self.overdue = True
        if self.phase in ASKING | {Phase.COMMIT, Phase.CLOSE}:
            self.deadline = self.now + self._timeout()

    def _timeout(self) -> float:
        settings = self.settings
        match self.phase:
            case Phase.PREPARE:
                return settings.prepare_timeout_s
            case Phase.STAGE:
                return settings.stage_timeout_s
            case Phase.ARM:
                return settings.arm_timeout_s
            case Phase.COMMIT | Phase.CLOSE:
                return settings.settle_timeout_s
            case _:
                return settings.decide_timeout_s

    def _resend(self) -> None:
        if self.ended:
            return
        self.resend_s = min(2 * self.resend_s, RESEND_BACKOFF_MAX * self.settings.resend_s)
        self.resend_at = self.now + self.resend_s
        if self.phase in ASKING:
            self._ask()
        else:
            self._say_to(self.waiting)

    # --- entering a phase -----------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        if self.ended:
            story = "\n  ".join(f"{at:.3f} {what}" for at, what in self.story)
            raise LocalProtocolError(
                f"epoch {self.epoch} is {self.phase}, cannot become {phase}\n  {story}"
            )
        self.phase = phase
        self.story.append((self.now, str(phase)))
        self.entered[phase] = self.now
        self.waiting = set(self.ranks) if phase not in ASKING | ENDED else set()
        self.deadline = self.now + self._timeout()
        self.resend_s = self.settings.resend_s
        self.resend_at = self.now + self.resend_s
        if phase in (Phase.OPEN, Phase.DECIDE):
            self.proposal = Verdict.COMMIT
        if phase is Phase.ARM:
            self.attempt += 1
            growth = min(2 ** (self.attempt - 1), MARGIN_GROWTH_MAX)
            self.at = self.forward + growth * self.settings.margin_forwards
        if phase in ASKING:
            self._ask()
        elif phase in (Phase.STAGE, Phase.CLOSE):
            self._leave_out_the_lost(phase)
        else:
            self._say_to(self.waiting)

    def _leave_out_the_lost(self, phase: Phase) -> None:
        """Do not wait for a rank that is not there: if it returns, it says how it stands."""
        self.waiting &= self.alive
        self._say_to(self.waiting)
        if phase is Phase.STAGE and len(self.alive) < len(self.ranks):
            self._fail("a rank was lost before staging", lane_broken=True)
        if not self.waiting:
            self._enter(Phase.ABORTED if phase is Phase.CLOSE else Phase.CLOSE)

    def _ask(self) -> None:
        """Have the next living rank write the proposal; the one before may be stuck."""
        if not self.alive:
            return
        order = sorted(self.alive)
        self.scribe = next((rank for rank in order if rank > self.scribe), order[0])
        gate = Gate.STAGE if self.phase is Phase.OPEN else Gate.FLIP
        attempt = 0 if gate is Gate.STAGE else self.attempt
        self.say.append(
            (self.scribe, m.Decide(self.term, self.epoch, gate, attempt, self.proposal))
        )

    def _say_to(self, ranks: set[int]) -> None:
        self.say.extend((rank, self._message(rank)) for rank in sorted(ranks))

    def _message(self, rank: int) -> m.FromLeader:
        match self.phase:
            case Phase.PREPARE:
                return self.prepares[rank]
            case Phase.STAGE:
                return m.Stage(self.term, self.epoch, self.stride)
            case Phase.ARM:
                guard = self.settings.guard_forwards
                return m.Arm(self.term, self.epoch, self.attempt, self.at, guard)
            case Phase.COMMIT:
                return m.Confirm(self.term, self.epoch, self.attempt)
            case _:
                return m.Abort(self.term, self.epoch, self.reason)

    def _fail(self, reason: str, *, lane_broken: bool = False) -> None:
        self.failed = True
        self.story.append((self.now, reason))
        self.lane_broken |= lane_broken
        self.reason = self.reason or reason

    def check(self) -> None:
        """Assert the invariants; tests call it after each step."""
        assert self.phase in ASKING | ENDED or self.waiting
        assert self.waiting <= set(self.ranks)
        assert self.phase not in (Phase.ARM, Phase.DECIDE, Phase.REVOKE) or self.attempt >= 1
        assert self.phase is not Phase.SETTLED or not self.failed or self.attempt >= 1
