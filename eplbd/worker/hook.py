"""The forward thread's face of eplbd: two calls per forward, bounded, no wait but one.

Owns the shared clock (the count of MoE forwards, dummies included) and the flip. It must not know
the protocol: the agent thread places an `Arm` and resolves it.

No lock, and one writer for each field. The agent thread writes `_arm`, then reads `forward`; the
forward thread writes `forward`, then reads `_arm`. The interpreter runs the two threads' bytecode
one at a time, so at least one of them sees the other's write: an arm that was placed in time cannot
be overlooked, and one that was not is resolved with abort by the agent thread, which no leader can
have turned into a commit because it was never acknowledged. The forward thread leaves an arm behind
by marking it, never by clearing `_arm`: there may already be the next attempt's.

The one wait: at the armed forward with nothing decided, until the register has answered. There it
is the only correct thing to do, since another rank may flip at this very forward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from eplbd.core.agent_events import AgentEvent, Flipped, Neared
from eplbd.core.messages import Verdict
from eplbd.errors import LocalProtocolError
from eplbd.worker.executor import Executor
from eplbd.worker.register import RegisterError
from eplbd.worker.ring import HeatRing


@dataclass(slots=True)
class Arm:
    """An attempt to flip: written by the agent thread, read by the forward thread.

    write: puts the new maps in force, in place and in stream order. woke, passed: the forward
    thread's notes that it told `Neared`, and that forward `at` is behind it.
    """

    term: int
    epoch: int
    attempt: int
    at: int
    near: int
    write: Callable[[], None]
    verdict: Verdict | None = None
    woke: bool = False
    passed: bool = False
    decided: threading.Event = field(default_factory=threading.Event)

    def resolve(self, verdict: Verdict) -> None:
        """Tell what the register holds; never changes once told."""
        if self.verdict is None:
            self.verdict = verdict
            self.decided.set()
        elif self.verdict is not verdict:
            raise LocalProtocolError(
                f"epoch {self.epoch} attempt {self.attempt} is {self.verdict}, cannot be {verdict}"
            )


@dataclass(slots=True)
class Times:
    """Sums that only grow, seconds and counts; the reader takes differences."""

    forwards: int = 0
    forward_s: float = 0.0
    staging_forwards: int = 0
    staging_forward_s: float = 0.0
    gaps: int = 0
    gap_s: float = 0.0


class ForwardHook:
    """Called around every MoE forward of this rank, dummies included.

    tell: hands an event to the agent thread without waiting. wait_limit_s: after this long at an
    undecided flip the store's host is gone, and with it the EP group: RegisterError.
    """

    def __init__(
        self,
        executor: Executor,
        ring: HeatRing,
        tell: Callable[[AgentEvent], None],
        *,
        wait_limit_s: float = 60.0,
    ) -> None:
        self.forward = 0
        self.times = Times()
        self.staging = False
        """Whether rounds are under way; written by the stager."""
        self.bubble = threading.Event()
        """Set after each forward while rounds are under way."""
        self._executor, self._ring, self._tell = executor, ring, tell
        self._wait_limit_s = wait_limit_s
        self._arm: Arm | None = None
        self._began = self._ended = 0.0

    @property
    def under_way(self) -> bool:
        """Whether a forward has begun and not ended; from any thread."""
        return self._began > self._ended

    # --- the forward thread ---------------------------------------------------------------------

    def before_forward(self) -> None:
        """Count the forward; flip, if it is the armed one."""
        self.forward = forward = self.forward + 1
        arm = self._arm
        if arm is not None and forward >= arm.near and not arm.passed:
            self._armed(arm, forward)
        self._began = perf_counter()

    def after_forward(self, tokens: int, *, dummy: bool = False, phase: int = 0) -> None:
        """Keep the heat of the forward just issued.

        tokens: valid tokens, padding excluded. phase: index into `eplbd.core.heat.PHASES`.
        """
        self._ring.record(self.forward, tokens=tokens, dummy=dummy, phase=phase)
        now = perf_counter()
        times = self.times
        if self._ended:
            times.gaps += 1
            times.gap_s += self._began - self._ended
        self._ended = now
        if self.staging:
            times.staging_forwards += 1
            times.staging_forward_s += now - self._began
            self.bubble.set()
        else:
            times.forwards += 1
            times.forward_s += now - self._began

    def _armed(self, arm: Arm, forward: int) -> None:
        if arm.verdict is None and not arm.woke:
            arm.woke = True
            self._tell(Neared(arm.term, arm.epoch, arm.attempt))
        if forward < arm.at:
            return
        began = perf_counter()
        if arm.verdict is None and not arm.decided.wait(self._wait_limit_s):
            raise RegisterError(
                f"epoch {arm.epoch}: the decision register did not answer for "
                f"{self._wait_limit_s} s at forward {forward}; its host, rank 0, is gone"
            )
        stall_s = perf_counter() - began
        arm.passed = True
        if arm.verdict is Verdict.COMMIT:
            self._executor.commit()
            arm.write()
            self._ring.flip(arm.epoch)
            self._tell(Flipped(arm.term, arm.epoch, forward, stall_s))

    # --- the agent thread -----------------------------------------------------------------------

    def place(self, arm: Arm) -> bool:
        """Let forward `arm.at` see the arm; false if `arm.near` has been reached already."""
        self._arm = arm
        if self.forward < arm.near:
            return True
        arm.resolve(Verdict.ABORT)
        return False
