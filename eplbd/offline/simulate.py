"""What a policy would have done on recorded heat: plan on a window, be judged on the next.

Owns the rolling forward and the figures of a row. Must not know where windows come from, how
figures are printed, nor which policies exist.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.hold import Hold
from eplbd.hookspecs import Policy
from eplbd.offline import layouts
from eplbd.offline.guests import Guest
from eplbd.offline.links import Bandwidth, Transfer, transfer
from eplbd.offline.measure import Loads, joined, loads, moved


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One plan and the window after it. window: number of that window. failure: empty or why."""

    window: int
    placement: Placement
    loads: Loads
    moves: int
    plan_s: float
    failure: str
    transfer: Transfer | None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One policy over all windows. initial: where its first plan started from."""

    policy: str
    initial: Placement
    expert_bytes: int
    judged: tuple[Judged, ...]

    @property
    def loads(self) -> Loads:
        """Loads of all judged steps."""
        return joined([one.loads for one in self.judged])

    @property
    def par_paid(self) -> float:
        """Mean over windows and layers of (sum of hottest load / sum of mean load)."""
        return float(np.mean([one.loads.paid for one in self.judged]))

    @property
    def par_total(self) -> float:
        """Sum of the hottest loads of all steps and layers over the sum of the mean ones."""
        return self.loads.total

    @property
    def moves_per_layer(self) -> float:
        """Mean over all plans, the first included."""
        layers = self.initial.layers
        return statistics.fmean(one.moves / layers for one in self.judged)

    @property
    def failures(self) -> list[str]:
        """Each plan that failed, with the window that it was made on."""
        return [f"window {one.window - 1}: {one.failure}" for one in self.judged if one.failure]

    def row(self) -> dict[str, object]:
        """The figures of this policy, as `--json` gives them; units are in the names."""
        par, layers = self.loads.par, self.initial.layers
        by_layer = np.mean([one.loads.paid for one in self.judged], axis=0)
        later = [one.moves / layers for one in self.judged[1:]]
        times = [one.plan_s * 1e3 for one in self.judged]
        moves = sum(one.moves for one in self.judged)
        transfers = [one.transfer for one in self.judged if one.transfer is not None]
        return {
            "policy": self.policy,
            "par_mean": _rounded(par.mean() if par.size else 1.0),
            "par_p95": _rounded(np.percentile(par, 95) if par.size else 1.0),
            "par_p99": _rounded(np.percentile(par, 99) if par.size else 1.0),
            "par_paid": _rounded(self.par_paid),
            "worst_layer": int(by_layer.argmax()),
            "worst_layer_par_paid": _rounded(by_layer.max()),
            "moves_per_layer": _rounded(self.moves_per_layer),
            "first_moves_per_layer": _rounded(self.judged[0].moves / layers),
            "later_moves_per_layer": _rounded(statistics.fmean(later)) if later else None,
            "moves": moves,
            "bytes": moves * self.expert_bytes,
            "rounds": sum(one.rounds for one in transfers) if transfers else None,
            "stall_ms": _rounded(statistics.fmean(one.seconds for one in transfers) * 1e3)
            if transfers
            else None,
            "plan_ms": _rounded(statistics.median(times)),
            "plan_ms_max": _rounded(max(times)),
            "judged_windows": len(self.judged),
            "failures": self.failures,
        }


def simulate(  # noqa: PLR0913  # three of them are rarely given
    windows: Sequence[NDArray[np.integer]],
    policy: Policy | Guest,
    topology: Topology,
    initial: Placement,
    budget: Budget,
    *,
    bandwidth: Bandwidth | None = None,
    phase: str = "all",
    done: Callable[[], object] | None = None,
) -> Result:
    """Let `policy` plan on every window but the last, and judge each plan on the window after.

    The first plan starts from `initial`, each later one from the policy's own placement. A plan
    that raises, cannot be served or breaks its budget changes nothing and is counted as a failure.

    Args:
        windows: at least two arrays `[steps, layers, experts]` of token counts, oldest first.
        policy: from `guests.invite`, or any policy (named by its `name`).
        topology: ranks, slots and nodes.
        initial: the placement in force before the first plan.
        budget: for each plan; `expert_bytes` prices the moves.
        bandwidth: with it, the time of the transfers is estimated too.
        phase: what the windows hold, as a policy is told.
        done: called after each plan.
    """
    guest = policy if isinstance(policy, Guest) else Guest(policy.name, lambda: policy)
    current, judged = initial, []
    for number, (seen, following) in enumerate(itertools.pairwise(windows), 1):
        answer = guest.ask(Heat(_steps(seen), phase), topology, current, budget)
        cost = None
        if bandwidth is not None:
            cost = transfer(current, answer.placement, topology, bandwidth, budget.expert_bytes)
        judged.append(
            Judged(
                window=number,
                placement=answer.placement,
                loads=loads(answer.placement, following),
                moves=moved(current, answer.placement),
                plan_s=answer.seconds,
                failure=answer.failure,
                transfer=cost,
            )
        )
        current = answer.placement
        if done is not None:
            done()
    return Result(guest.name, initial, budget.expert_bytes, tuple(judged))


def baseline(
    windows: Sequence[NDArray[np.integer]], topology: Topology, initial: Placement, budget: Budget
) -> Result:
    """The same windows if nothing ever moved."""
    return simulate(windows, Hold(), topology, initial, budget)


def unbalanced(windows: Sequence[NDArray[np.integer]], ranks: int, budget: Budget) -> Result | None:
    """The same windows with no balancer enabled: the experts in order, each once, no copies.

    None where that cannot be: fewer experts than ranks.
    """
    _, layers, experts = windows[0].shape
    if experts < ranks:
        return None
    placement = layouts.unbalanced(layers, experts, ranks)
    group = Topology.single_node(ranks, placement.slots_per_rank)
    return replace(baseline(windows, group, placement, budget), policy="off")


def _steps(window: NDArray[np.integer]) -> NDArray[np.int32]:
    steps = np.ascontiguousarray(window, dtype=np.int32)
    steps = steps.copy() if steps.flags.writeable and steps is window else steps
    steps.setflags(write=False)
    return steps


def _rounded(value: float | np.floating) -> float:
    return round(float(value), 4)
