"""What stands where vllm-ascend's balancer was: every call of it, and nothing behind them.

Owns the retirement of the engine's own balancer: its child processes end, its counter and the wait
for a plan that may never come are gone. It must not know what balances instead.
"""

from __future__ import annotations

from collections.abc import Callable

from eplbd_vllm.ascend.engine import Runner


class IdleAdaptor:
    """Where the engine's profiling run has its heat cleared."""

    def __init__(self, clear: Callable[[], None]) -> None:
        self.clear_all_moe_loads = clear


class IdleUpdator:
    """`EplbUpdator`, called by the runner around every forward, doing nothing."""

    def __init__(self, clear: Callable[[], None]) -> None:
        self.adaptor = IdleAdaptor(clear)

    def forward_before(self) -> None:
        """Nothing: the hook is called by the worker's wrapper."""

    def forward_end(self, eplb_heat_collection_status: bool = True) -> None:  # noqa: FBT001, FBT002
        """Nothing, likewise."""

    def shutdown(self) -> None:
        """Nothing: there is no child."""


def retire(runner: Runner, clear: Callable[[], None]) -> None:
    """Switch the engine's own balancer off: two controllers of one placement is an error.

    clear: forgets the heat counted so far. Heat is counted in every forward from here on, whatever
    its phase: the leader keeps phases apart.
    """
    runner.eplb_updator.shutdown()
    runner.manager.shutdown()
    runner.eplb_updator = IdleUpdator(clear)
    runner.is_eplb_warmuped = True
    runner.eplb_heat_collection_stage = "all"
    runner.eplb_heat_collection_status = True
