"""Faults inside one worker: wrappers around real parts, each waiting for its name to be called.

Owns what can be made to go wrong and where it strikes. It must not know why: the test does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch._C._distributed_c10d import Store

from eplbd.core.messages import Prepare, Standing, Verdict
from eplbd.core.placement import Placement
from eplbd.core.rounds import Col
from eplbd.errors import TransferError
from eplbd.worker.agent import AgentThread, Identity, Parts
from eplbd.worker.executor import ExecutorStatistics, RankWork
from eplbd.worker.stager import Engine
from eplbd.worker.torch_p2p import TorchP2PExecutor
from eplbd.worker.torch_register import TorchRegister
from tests.chaos.control import Fault

log = logging.getLogger("tests.chaos")


@dataclass
class Faults:
    """What is to go wrong on this rank, and what has."""

    waiting: dict[Fault, float] = field(default_factory=dict)
    struck: list[Fault] = field(default_factory=list)

    def inject(self, fault: Fault, seconds: float) -> None:
        """Let a fault strike as soon as it can."""
        self.waiting[fault] = seconds

    def strikes(self, fault: Fault) -> float | None:
        """Seconds of a fault that strikes now; None if it does not. One thread asks for each."""
        seconds = self.waiting.pop(fault, None)
        if seconds is not None:
            self.struck.append(fault)
            log.warning("fault: %s (%s s)", fault, seconds)
        return seconds


class FaultyExecutor:
    """The real executor, until a fault strikes."""

    def __init__(self, real: TorchP2PExecutor, rank: int, faults: Faults) -> None:
        self._real, self._rank, self._faults = real, rank, faults
        self._work: RankWork | None = None

    @property
    def lane(self) -> int:
        return self._real.lane

    @property
    def lane_broken(self) -> bool:
        return self._real.lane_broken

    @property
    def layout_digest(self) -> str:
        return self._real.layout_digest

    @property
    def expert_bytes(self) -> int:
        return self._real.expert_bytes

    def reserve(self, work: RankWork) -> None:
        if (seconds := self._faults.strikes(Fault.REFUSE)) is not None:
            time.sleep(seconds)
            raise TransferError("no memory: the test has taken it")
        self._work = work
        self._real.reserve(work)

    def stage(self, round_index: int) -> None:
        if (seconds := self._faults.strikes(Fault.SLOW_STAGE)) is not None:
            time.sleep(seconds)
        if self._peers_after(round_index) and self._faults.strikes(Fault.CUT_LANE) is not None:
            # As if the network had closed its connections; there is no public way to harm a lane.
            self._real._break("the test cut it")  # noqa: SLF001
        self._real.stage(round_index)
        if self._peers_after(round_index) and self._faults.strikes(Fault.FAIL_STAGE) is not None:
            raise TransferError(f"round {round_index}: a kernel of the test failed")

    def verify(self) -> None:
        buffers = self._received()
        if buffers and self._faults.strikes(Fault.DAMAGE) is not None:
            # Behind the header, within the first tensor.
            self._real.staging(buffers[-1])[300] ^= 0x40
        self._real.verify()

    def commit(self) -> None:
        self._real.commit()

    def discard(self) -> None:
        self._real.discard()

    def renew(self, lane: int) -> None:
        self._real.renew(lane)

    def statistics(self) -> ExecutorStatistics:
        return self._real.statistics()

    def _received(self) -> list[int]:
        """Staging buffers that another rank filled."""
        assert self._work is not None
        rows = self._work.transfers
        mine = (rows[:, Col.DST] == self._rank) & (rows[:, Col.SRC] != self._rank)
        buffers: list[int] = rows[mine, Col.DST_BUFFER].tolist()
        return buffers

    def _peers_after(self, round_index: int) -> bool:
        """Whether this rank has messages to exchange in a later round."""
        assert self._work is not None
        rows = self._work.transfers
        return bool(
            ((rows[:, Col.ROUND] > round_index) & (rows[:, Col.SRC] != rows[:, Col.DST])).any()
        )


class FaultyEngine:
    """The real engine's maps; tells what comes into force, on the forward's thread."""

    def __init__(self, real: Engine, faults: Faults, wrote: Callable[[int], None]) -> None:
        self._real, self._faults, self._wrote = real, faults, wrote

    def stage_maps(self, prepare: Prepare) -> Callable[[], None]:
        if self._faults.strikes(Fault.REFUSE_MAPS) is not None:
            raise TransferError("maps: the test leaves no room for them")
        write = self._real.stage_maps(prepare)

        def write_and_tell() -> None:
            write()
            self._wrote(prepare.epoch)

        return write_and_tell


class SlowRegister(TorchRegister):
    """The real register, which may take its time over a flip."""

    def __init__(self, faults: Faults, store: Store) -> None:
        super().__init__(store)
        self._faults = faults

    def decide(self, key: str, proposal: Verdict, *, deadline_s: float) -> Verdict:
        verdict = super().decide(key, proposal, deadline_s=deadline_s)
        if "/flip/" in key and verdict is Verdict.ABORT:
            time.sleep(self._faults.strikes(Fault.SLOW_REGISTER) or 0.0)
        return verdict


class TroubledAgent(AgentThread):
    """The real agent, whose thread may pause or die."""

    def __init__(
        self,
        faults: Faults,
        socket: str,
        identity: Identity,
        placement: Placement,
        parts: Parts,
    ) -> None:
        super().__init__(socket, identity, placement, parts)
        self.register = parts.register
        self._faults = faults

    def _report_heat(self) -> None:
        """Once in each turn of the thread's loop."""
        armed = self.machine.standing is Standing.ARMED
        if not armed and (seconds := self._faults.strikes(Fault.PAUSE_AGENT)) is not None:
            time.sleep(seconds)
        if armed and self._faults.strikes(Fault.KILL_AGENT) is not None:
            raise RuntimeError("the test ends the agent's thread")
        super()._report_heat()
