"""One rebalance after the other: trigger, policy, benefit, epochs, what came of it.

    RESTING -> PLANNING -> MOVING -> MEASURING -> RESTING

Owns the decision whether a move is paid for. The policy proposes, nothing here repairs what it
proposes: an answer is taken whole or refused whole. What was refused is not asked for again while
the load is what it was. Must not know messages, sessions or who sends what.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eplbd.core.drift import Profile
from eplbd.core.epoch import Phase as EpochPhase
from eplbd.core.heat import Heat
from eplbd.core.orders import Orders
from eplbd.core.placement import Placement, par, rank_load, validate
from eplbd.core.plan import Plan
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from eplbd.core.events import EpochEnded
    from eplbd.core.settings import BalanceSettings
    from eplbd.core.topology import Topology

HELD_OUT = 0.25
"""Share of the window's newest steps that the policy does not see and is judged on."""

JUDGED_STEPS = 32
"""Steps on which placements are compared, evenly spaced: PAR over more differs in the third digit,
and the leader's loop must not stand still (512 steps of 58 x 256 take 0.2 s)."""

Speed: TypeAlias = NDArray[np.float64]
"""`[ranks]`, by which their loads are divided: a rank of half the speed counts as twice as hot."""

ASKING_MODES = ("dynamic", "record")
"""Modes in which the active policy is asked; in the others it is not needed."""

EPOCH_RETRIES = 5
"""Consecutive aborted epochs after which the rest of a plan is dropped: by then its heat is old."""


class Stage(enum.StrEnum):
    """Where the rebalance stands."""

    RESTING = "resting"
    PLANNING = "planning"
    MOVING = "moving"
    MEASURING = "measuring"


@dataclass(slots=True)
class Tally:
    """What one rebalance has come to so far; the fields of its log line."""

    policy: str = ""
    par_before: float = 0.0
    par_predicted: float = 0.0
    policy_s: float = 0.0
    moves: int = 0
    bytes: int = 0
    settled: int = 0
    aborted: int = 0
    reason: str = ""
    gain_predicted: float = 0.0
    gain_realised: float = 0.0
    dear: bool = False
    """Whether the cost of the moves alone spoke against it."""
    forced: bool = False
    """Whether an operator wants the answer whatever it gains."""
    ordered: bool = False
    """Whether an operator said where to go, and no policy."""
    stall_s: float = 0.0
    bubble_used: float = 0.0
    """Mean over settled epochs."""

    def book(self, settled: EpochEnded) -> None:
        """Add a settled epoch."""
        self.settled += 1
        self.moves += settled.moves
        self.bytes += settled.bytes
        self.stall_s += settled.stall_s
        self.bubble_used += (settled.bubble_used - self.bubble_used) / self.settled


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer that was worth nothing: whose, to which placement, under which load.

    until: when it is worth asking again whatever the load; seconds.
    """

    policy: str
    digest: str
    load: Profile
    until: float


def thinned(steps: NDArray[np.int32]) -> NDArray[np.int32]:
    """At most `JUDGED_STEPS` of `steps` (`[steps, layers, experts]`), the newest among them."""
    stride = -(-steps.shape[0] // JUDGED_STEPS)
    return steps[::-1][:: max(1, stride)][::-1]


def mean_par(placement: Placement, steps: NDArray[np.int32], speed: Speed | float = 1.0) -> float:
    """Mean PAR over steps and layers if `placement` served `steps` `[steps, layers, experts]`."""
    return float(par(rank_load(placement, steps) / speed).mean())


def slowest_load(
    placement: Placement, steps: NDArray[np.int32], speed: Speed | float = 1.0
) -> float:
    """Sum over steps and layers of the hottest rank's load: what a synchronous engine waits for."""
    return float((rank_load(placement, steps) / speed).max(axis=-1).sum())


class Cycle:
    """The rebalance of one group.

    Its owner asks `wants_plan`, sends the heat to a policy, hands the answer to `answered`, takes
    epochs from `plan`, and reports how they ended.
    """

    def __init__(
        self,
        settings: BalanceSettings,
        topology: Topology,
        layers: int,
        experts: int,
        *,
        weighted: bool = False,
    ) -> None:
        self.settings, self.topology = settings, topology
        self.layers, self.experts = layers, experts
        self.weighted = weighted
        """Whether the group's engine takes shares."""
        self.orders = Orders()
        """May change at any time but while a policy is asked, as far as ranks are drained."""
        self.forced = False
        """Whether to ask at once, and take the answer whatever it gains."""
        self.stage = Stage.RESTING
        self.next_at = self.considered_at = 0.0
        self.plan: Plan | None = None
        self.judged = np.empty((0, layers, experts), dtype=np.int32)
        self.load: Profile | None = None
        """Of the heat that the policy is asked about."""
        self.refused: Refused | None = None
        self.target: Placement | None = None
        """Where the newest plan leads, be it worth it or not."""
        self.planned: NDArray[np.float64] | None = None
        """PAR that the newest accepted plan promised, `[layers]`, read-only; None if none did."""
        self.tally = Tally()
        self.failures = 0
        self.deadline = 0.0

    @property
    def speed(self) -> Speed:
        """Of the ranks that a policy is shown."""
        return np.array(self.orders.topology(self.topology).speed)

    def wants_plan(self, now: float) -> bool:
        """Whether it is time to look at the heat."""
        asking = self.settings.mode in ASKING_MODES
        return asking and self.stage is Stage.RESTING and (self.forced or now >= self.next_at)

    def consider(self, heat: Heat, current: Placement, policy: str, now: float) -> Heat | None:
        """Return what the policy may see, or None if there is nothing to do; rest either way."""
        self.considered_at = now
        self.next_at = now + self.settings.interval_s
        steps = heat.steps.shape[0]
        if steps < max(self.settings.min_steps, 2):
            return None
        forced, self.forced = self.forced, False
        before = mean_par(self.orders.seen(current), thinned(heat.steps), self.speed)
        if before <= self.settings.par_trigger and not forced:
            return None
        self.load = Profile.of(heat.steps)
        if self._is_refused(policy, current, self.load, now) and not forced:
            return None
        held_out = max(1, int(steps * HELD_OUT))
        self.judged = thinned(heat.steps[-held_out:])
        self.tally = Tally(policy=policy, par_before=before, forced=forced)
        self.stage = Stage.PLANNING
        return Heat(heat.steps[:-held_out], heat.phase)

    def _is_refused(self, policy: str, current: Placement, load: Profile, now: float) -> bool:
        """Whether asking would only repeat what was refused."""
        old = self.refused
        if old is None or now >= old.until or (old.policy, old.digest) != (policy, current.digest):
            return False
        return not load.differs(old.load)

    def answered(
        self,
        slots: NDArray[np.generic],
        current: Placement,
        duration_s: float,
        cost_s: float,
        shares: NDArray[np.generic] | None = None,
    ) -> str:
        """Judge a proposal; return why it is refused, empty if its epochs may begin.

        cost_s: seconds of inter-token latency that one round costs, from the pacer. shares: with
        them a plan may be without moves. Raises PlacementError if the proposal is no placement, or
        has shares that the engine does not take: the policy's fault.
        """
        self.tally.policy_s = duration_s
        seen = self.orders.seen(current)
        target = self._target(slots, shares, seen, current)
        now = rank_load(seen, self.judged)
        excess = np.maximum(now.mean(axis=0), 0.0) / self.speed
        above = excess.max(axis=-1) - excess.mean(axis=-1)
        plan = Plan(current, target, self.topology, above, self.orders.drained)
        self.tally.moves = plan.moves
        self.target = target
        if plan.is_empty:
            return self._not_worth("unchanged", current)
        limit = self.settings.max_moves
        if limit and plan.moves > limit:
            raise PlacementError(
                f"{plan.moves} moves, the budget is {limit}; propose within budget.moves"
            )
        then = rank_load(self.orders.seen(target), self.judged) / self.speed
        promised = par(then).mean(axis=0)
        promised.setflags(write=False)
        self.tally.par_predicted = float(promised.mean())
        short = "recorded"
        if self.settings.mode != "record":
            short = self._shortfall(now / self.speed, then, plan.least_rounds * cost_s)
        if short:
            return self._not_worth(short, current)
        self.plan, self.stage, self.failures = plan, Stage.MOVING, 0
        self.planned = promised
        self.tally.moves = 0
        return ""

    def _target(
        self,
        slots: NDArray[np.generic],
        shares: NDArray[np.generic] | None,
        seen: Placement,
        current: Placement,
    ) -> Placement:
        """A proposal for what was `seen` of `current`, as a placement of all ranks."""
        proposal = validate(
            slots,
            experts=self.experts,
            topology=self.orders.topology(self.topology),
            layers=self.layers,
            allow_duplicates=seen.has_duplicates,
            shares=shares,
        )
        if proposal.shares is not None and not self.weighted:
            raise PlacementError(
                "shares: this engine splits every expert evenly over its replicas; return shares "
                "only where budget.weighted is true"
            )
        return self.orders.completed(proposal, current, weighted=self.weighted)

    def _shortfall(
        self, load: NDArray[np.float64], promised: NDArray[np.float64], cost: float
    ) -> str:
        """Why the way to the `promised` load is not worth `cost` seconds of moves; empty if it is.

        load, promised: `[steps, layers, ranks]`. Empty, too, where the answer was forced.
        """
        if self.tally.forced:
            return ""
        slowest, then = (float(each.max(axis=-1).sum()) for each in (load, promised))
        gain = 1.0 - then / slowest if slowest else 0.0
        self.tally.gain_predicted = gain
        if gain < self.settings.min_gain:
            return f"gain {gain:.4f} is under min_gain {self.settings.min_gain}"
        if gain * self.settings.horizon_s < cost:
            self.tally.dear = True
            gained = f"gain {gain:.4f} over {self.settings.horizon_s} s"
            return f"{gained} does not pay {cost:.3f} s of moves"
        return ""

    def go_to(self, target: Placement, current: Placement, policy: str) -> bool:
        """Move to a placement that nobody need be asked about; whether there is anything to move.

        Raises PlacementError where it cannot be served by this group.
        """
        if target.shares is not None and not self.weighted:
            target = Placement(target.slots, target.experts)
        alone = self.orders.sole(current) or self.orders.sole(target)
        spared = frozenset[int]() if alone else self.orders.drained
        plan = Plan(current, target, self.topology, spared=spared)
        if plan.is_empty:
            return False
        self.tally = Tally(policy=policy)
        self.plan, self.stage, self.failures = plan, Stage.MOVING, 0
        self.target, self.planned = target, None
        return True

    def _not_worth(self, reason: str, current: Placement) -> str:
        """Refuse, and remember under which load, so that the same is not asked again."""
        assert self.load is not None
        until = self.considered_at + self.settings.horizon_s
        self.refused = Refused(self.tally.policy, current.digest, self.load, until)
        return self._refuse(reason)

    def _refuse(self, reason: str) -> str:
        self.tally.reason = reason
        self.stage = Stage.RESTING
        return reason

    def policy_failed(self, reason: str) -> None:
        """The policy gave nothing usable; the placement stays."""
        self._refuse(reason)

    def epoch_ended(self, line: EpochEnded, now: float) -> None:
        """Book an epoch: one that aborted is tried again, after a pause."""
        assert self.plan is not None
        if line.outcome == EpochPhase.SETTLED:
            self.plan.settled()
            self.failures = 0
            self.tally.book(line)
            return
        self.tally.aborted += 1
        self.tally.reason = line.reason
        self.failures += 1
        self.next_at = now + self.settings.pause_s * 2 ** (self.failures - 1)
        if self.failures >= EPOCH_RETRIES:
            self.drop(f"{self.failures} epochs aborted in a row, last: {line.reason}", now)

    def may_move(self, now: float) -> bool:
        """Whether the next epoch of the plan may begin."""
        return self.stage is Stage.MOVING and (self.failures == 0 or now >= self.next_at)

    def drop(self, reason: str, now: float) -> None:
        """Give the rest of the plan up."""
        self.plan = None
        self.tally.reason = reason
        self.measure(now)

    def measure(self, now: float) -> None:
        """All epochs are over: wait for heat under the new map."""
        self.plan = None
        self.stage = Stage.MEASURING
        self.deadline = now + self.settings.interval_s
        self.next_at = now + self.settings.interval_s

    def rest(self) -> Tally:
        """Close the rebalance and return its books."""
        self.stage = Stage.RESTING
        return self.tally

    @property
    def outcome(self) -> str:
        """applied, partly, failed: what the epochs came to."""
        if not self.tally.settled:
            return "failed"
        return "partly" if self.tally.reason else "applied"
