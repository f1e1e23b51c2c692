"""What has become of one group since the daemon started, added up from the daemon's own lines.

Owns the sums and the newest line of each kind. Must not know how an epoch or a cycle came to its
end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from eplbd.core.events import CycleEnded, EpochEnded, ShadowScored
from eplbd.core.topology import Link

Counted: TypeAlias = EpochEnded | CycleEnded | ShadowScored
COUNTED: Final = (EpochEnded, CycleEnded, ShadowScored)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all epochs and cycles, settled moves alone; a later value replaces an earlier one.

    epochs, cycles: how many ended, by outcome. moves: by `Link`, in its order. stall_s: sum over
    epochs of the longest time that a rank's forward waited. settled_at: when an epoch settled last,
    seconds, monotonic. epoch: the newest line. cycle: that of the newest rebalance which moved
    experts and was measured: one that changes nothing says nothing of what a promise was worth.
    scores: a shadow's newest line, by policy.
    """

    epochs: Mapping[str, int] = field(default_factory=dict)
    cycles: Mapping[str, int] = field(default_factory=dict)
    moves: tuple[int, ...] = (0,) * len(Link)
    stall_s: float = 0.0
    settled_at: float | None = None
    epoch: EpochEnded | None = None
    cycle: CycleEnded | None = None
    scores: Mapping[str, ShadowScored] = field(default_factory=dict)

    def after(self, ended: Counted, now: float) -> Totals:
        """With one line more, written at `now`."""
        match ended:
            case CycleEnded(outcome=outcome):
                told = ended.epochs_settled > 0 and ended.par_realised > 0.0
                cycle = ended if told else self.cycle
                return replace(self, cycle=cycle, cycles=_one_more(self.cycles, outcome))
            case ShadowScored(policy=policy):
                return replace(self, scores={**self.scores, policy: ended})
            case EpochEnded(outcome=outcome):
                epochs = _one_more(self.epochs, outcome)
                if outcome != "settled":
                    return replace(self, epoch=ended, epochs=epochs)
                moves = zip(self.moves, ended.by_link, strict=True)
                return replace(
                    self,
                    epoch=ended,
                    epochs=epochs,
                    moves=tuple(before + more for before, more in moves),
                    stall_s=self.stall_s + ended.stall_s,
                    settled_at=now,
                )


def _one_more(counts: Mapping[str, int], name: str) -> Mapping[str, int]:
    return {**counts, name: counts.get(name, 0) + 1}
