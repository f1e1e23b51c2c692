"""What a trace cannot know about a forward: its time, and how much of it waits.

Owns these assumptions and their defaults. Must not know how a gain was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from eplbd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the trace cannot know.

    step_ms: one forward as it is today, without a balancer. moe_share: the part of it that waits
    for the hottest rank: dispatch, experts and combine of all MoE layers. min_gain: the least part
    of a forward that is worth the trouble. horizon_s: how long a placement is taken to pay where
    the trace does not tell, as in eplbd.toml. row_steps: forwards that one row of the trace stands
    for; None where unknown.
    """

    step_ms: float = 50.0
    moe_share: float = 0.3
    min_gain: float = 0.01
    horizon_s: float = 600.0
    row_steps: float | None = None

    def __post_init__(self) -> None:
        if not (self.step_ms > 0 and 0 < self.moe_share <= 1 and self.horizon_s > 0):
            raise ConfigError(
                f"step {self.step_ms} ms, MoE share {self.moe_share}, horizon {self.horizon_s} s; "
                "expected a positive time, a share within 0..1 and a positive horizon"
            )

    def saved_ms(self, gain: float) -> float:
        """Milliseconds off a forward if the hottest ranks' load shrinks by that fraction."""
        return self.step_ms * self.moe_share * gain
