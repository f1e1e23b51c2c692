"""What one simulated run came to, in figures.

Owns their names and what each is measured from. Must not know how they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eplbd.core import events as e
from eplbd.core.messages import Arm
from eplbd.offline.cluster.daemon import Meter
from eplbd.offline.cluster.memory import held_bytes

if TYPE_CHECKING:
    from eplbd.offline.cluster.world import World


@dataclass(slots=True)
class Watch:
    """Takes every effect, and keeps what figures are made of."""

    armed: dict[tuple[int, int], int] = field(default_factory=dict)
    """Forward at which an epoch was armed first, by term and epoch."""
    ended: list[e.EpochEnded] = field(default_factory=list)
    settled_after: list[int] = field(default_factory=list)
    """Forwards from arming to the last acknowledgement, of every settled epoch."""
    notes: list[e.Note] = field(default_factory=list)

    def see(self, host: int, forward: int, effect: e.Effect) -> None:
        """Take an effect of a host's daemon; `forward`: the engine's newest."""
        if host:
            return
        match effect:
            case e.Send(_, Arm(term, epoch)):
                self.armed.setdefault((term, epoch), forward)
            case e.EpochEnded():
                self.ended.append(effect)
                if effect.outcome == "settled":
                    armed = self.armed.get((effect.term, effect.epoch), forward)
                    self.settled_after.append(forward - armed)
            case e.Note():
                self.notes.append(effect)
            case _:
                pass


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one daemon. core: share of a core; by: of it, by what was taken, most first."""

    core: float
    by: dict[str, float]
    longest_turn_ms: float
    up_bytes_per_s: float
    down_bytes_per_s: float

    @classmethod
    def of(cls, meter: Meter, seconds: float) -> Cost:
        """What `meter` has counted in `seconds`."""
        by = sorted(meter.cpu_s.items(), key=lambda item: -item[1])
        return cls(
            core=sum(meter.cpu_s.values()) / seconds,
            by={kind: round(cpu_s / seconds, 5) for kind, cpu_s in by},
            longest_turn_ms=meter.longest_turn_s * 1e3,
            up_bytes_per_s=meter.received_bytes / seconds,
            down_bytes_per_s=meter.sent_bytes / seconds,
        )


def row(world: World, watch: Watch, seconds: float, cpu_s: float) -> dict[str, object]:
    """The figures of a run, as `--json` gives them; units are in the names."""
    plan, leader = world.plan, world.leader
    cost = Cost.of(leader.meter, seconds)
    settled = [end for end in watch.ended if end.outcome == "settled"]
    relays = [Cost.of(daemon.meter, seconds).core for daemon in world.daemons[1:]]
    return {
        "ranks": plan.ranks,
        "nodes": plan.hosts,
        "layers": plan.layers,
        "slots": plan.slots,
        "experts": plan.experts,
        "forwards_per_s": plan.forwards_per_s,
        "seed": plan.seed,
        "policy": world.policy.name,
        "seconds": seconds,
        "forwards": world.engine.forward,
        "leader_core": round(cost.core, 4),
        "leader_core_by": cost.by,
        "leader_longest_turn_ms": round(cost.longest_turn_ms, 1),
        "leader_bytes": held_bytes(leader.node),
        "relay_core_mean": round(sum(relays) / len(relays), 4) if relays else None,
        "relay_core_max": round(max(relays), 4) if relays else None,
        "up_bytes_per_rank_s": round(cost.up_bytes_per_s / plan.ranks),
        "down_bytes_per_rank_s": round(cost.down_bytes_per_s / plan.ranks),
        "epochs_settled": len(settled),
        "epochs_aborted": len(watch.ended) - len(settled),
        "moves": sum(end.moves for end in settled),
        "attempts_max": max((end.attempts for end in watch.ended), default=0),
        "margin_forwards": plan.settings.epoch.margin_forwards,
        "armed_to_settled_forwards_max": max(watch.settled_after, default=0),
        "longest_wait_ms": round(world.engine.longest_wait_s * 1e3, 3),
        "lost": world.network.counts["lost"],
        "cut": world.network.counts["cut"],
        "repeated": world.network.counts["repeated"],
        "simulation_cpu_s": round(cpu_s, 1),
    }
