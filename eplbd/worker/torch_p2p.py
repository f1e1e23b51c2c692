"""The executor on torch: weights travel point to point, on a side stream where the device has any.

Owns the order of a rank's work: renew, reserve, stage, verify, commit. It must not know how a round
runs (`torch_round`), how messages travel (`torch_lane`, `torch_transport`), nor epochs.

Order on a device. Staging runs on the side stream. It reads live slots, which only a commit writes,
and writes staging buffers, which only a commit reads; so it starts behind a mark that each commit
leaves on the forward's stream. `verify` waits on the host until the side stream is through, so a
commit, issued later, needs no mark.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from eplbd.errors import LocalProtocolError, TransferError
from eplbd.worker.executor import Capacity, ExecutorStatistics, RankWork, Transfer, check_work
from eplbd.worker.torch_experts import ExpertTensors
from eplbd.worker.torch_lane import Lane, Seat
from eplbd.worker.torch_round import RoundRunner, collect
from eplbd.worker.torch_staging import Staging
from eplbd.worker.torch_store import own_client
from eplbd.worker.torch_streams import mark_on, side_stream
from eplbd.worker.torch_transport import Direct, HostStaged

_NEVER = -1


class Route(enum.StrEnum):
    """How bytes leave a rank."""

    DEVICE = "device"
    """The device's own transport: gloo for CPU memory, NCCL for CUDA, HCCL for NPU."""
    HOST = "host"
    """Through pinned host memory and gloo: where the device's transport hangs beside a forward."""


class TorchP2PExecutor:
    """The executor of `rank` of `ranks` for `experts`; see `Executor` for the contract.

    store: of the EP group; cloned, never used itself. experts_per_rank: staging buffers. timeout_s:
    for each round, each `verify` and each `renew`. No rank is met before the first `renew`.
    """

    def __init__(
        self,
        experts: ExpertTensors,
        store: Store,
        rank: int,
        ranks: int,
        *,
        experts_per_rank: int = 2,
        route: Route = Route.DEVICE,
        timeout_s: float = 10.0,
    ) -> None:
        self._experts = experts
        self._seat = Seat(own_client(store, timeout_s), rank, ranks)
        self._capacity = Capacity(rank, ranks, experts.layers, experts.slots, experts_per_rank)
        self._route = route
        self._timeout_s = timeout_s
        self._lane_device = experts.device if route is Route.DEVICE else torch.device("cpu")
        self._side = side_stream(experts.device)
        self._committed = mark_on(experts.device)
        self._lane: Lane | None = None
        self._lane_number = _NEVER
        self._broken = "no lane yet"
        self._runner: RoundRunner | None = None
        self._rounds: tuple[tuple[Transfer, ...], ...] | None = None
        self._staged: set[int] = set()
        self._failed = ""
        self._pairs: list[tuple[Tensor, Tensor]] | None = None
        self._sent = self._received = self._copied = 0
        self._round_count = self._commits = self._failures = 0

    @property
    def lane(self) -> int:
        """See `Executor`."""
        return self._lane_number

    @property
    def lane_broken(self) -> bool:
        """See `Executor`."""
        return self._lane is None

    @property
    def layout_digest(self) -> str:
        """See `Executor`."""
        return self._experts.layout_digest

    @property
    def expert_bytes(self) -> int:
        """See `Executor`."""
        return self._experts.expert_bytes

    def staging(self, index: int) -> Tensor:
        """Return a staging buffer, flat uint8: for diagnosis, and for tests that damage it."""
        return self._allocated().staging.buffer(index)

    # --- the stager thread ----------------------------------------------------------------------

    def renew(self, lane: int) -> None:
        """See `Executor`."""
        if self._rounds is not None:
            raise LocalProtocolError(f"renew({lane}): a work is reserved; discard it first")
        if lane <= self._lane_number:
            raise LocalProtocolError(f"renew({lane}): lane {self._lane_number} was used already")
        self._lane_number = lane
        self._break(f"lane {lane} never came up")
        try:
            with self._side:
                self._lane = Lane(
                    self._seat, lane, self._lane_device, self.layout_digest, self._timeout_s
                )
        except TransferError:
            self._failures += 1
            raise

    def reserve(self, work: RankWork) -> None:
        """See `Executor`."""
        if self._rounds is not None:
            raise LocalProtocolError("reserve: the last work was neither committed nor discarded")
        try:
            rounds = check_work(work, self._capacity)
            self._allocated()
        except TransferError:
            self._failures += 1
            raise
        except RuntimeError as error:
            raise self._failure(f"rank {work.rank}: no memory to stage in: {error}") from error
        self._staged.clear()
        self._failed = ""
        self._rounds = rounds

    def stage(self, round_index: int) -> None:
        """See `Executor`."""
        transfers = self._reserved("stage")[round_index]
        if round_index in self._staged:
            raise LocalProtocolError(f"stage: round {round_index} was staged already")
        self._staged.add(round_index)
        if not transfers:
            return
        lane, runner = self._lane, self._allocated()
        if lane is None:
            raise self._failure(f"{transfers[0]}: the lane is broken: {self._broken}")
        with self._side:
            self._committed.hold_back()
            report = runner.run(transfers, lane, self._timeout_s)
        if report.broken:
            self._break(report.broken)
        if report.broken or report.failures:
            raise self._failure("; ".join([*report.failures, report.broken]).rstrip("; "))
        self._sent += report.sent
        self._received += report.received
        self._copied += report.copied
        self._round_count += 1

    def verify(self) -> None:
        """See `Executor`."""
        rounds, runner = self._reserved("verify"), self._allocated()
        if len(self._staged) < len(rounds):
            raise LocalProtocolError(f"verify: staged {len(self._staged)} of {len(rounds)} rounds")
        if self._failed:
            raise self._failure(f"not everything was staged: {self._failed}")
        rank = self._capacity.rank
        incoming = [each for transfers in rounds for each in transfers if each.dst == rank]
        try:
            with self._side:
                found = [
                    runner.staging.verdict(each.dst_buffer, each.layer, each.expert)
                    for each in incoming
                ]
                # Before the wait for the verdicts, so that whatever they take is over as well.
                pairs = [pair for each in incoming for pair in self._pairs_of(each, runner.staging)]
                verdicts = collect(found, self._timeout_s)
        except RuntimeError as error:
            raise self._failure(f"verify: {error}") from error
        for transfer, verdict in zip(incoming, verdicts, strict=True):
            if any(verdict):
                raise self._failure(self._mismatch(transfer, verdict))
        self._pairs = pairs

    def discard(self) -> None:
        """See `Executor`."""
        self._pairs = None
        self._rounds = None

    # --- the forward thread ---------------------------------------------------------------------

    def commit(self) -> None:
        """See `Executor`."""
        pairs, self._pairs = self._pairs, None
        if pairs is None:
            raise LocalProtocolError("commit: nothing was verified")
        # Weights that an engine made under inference mode may only be written to under it. torch
        # 2.13 does not insist for a detached view; no document says that others do not.
        with torch.inference_mode():
            for slot, staged in pairs:
                slot.copy_(staged, non_blocking=True)
            self._committed.record()
        self._commits += 1
        self._rounds = None

    def statistics(self) -> ExecutorStatistics:
        """See `Executor`."""
        runner = self._runner
        return ExecutorStatistics(
            lane=self._lane_number,
            staging_bytes=runner.staging.nbytes if runner else 0,
            host_bytes=runner.transport.nbytes if runner else 0,
            bytes_sent=self._sent,
            bytes_received=self._received,
            bytes_copied=self._copied,
            rounds=self._round_count,
            commits=self._commits,
            failures=self._failures,
        )

    # --- steps ----------------------------------------------------------------------------------

    def _allocated(self) -> RoundRunner:
        if self._runner is None:
            experts, capacity = self._experts, self._capacity
            staging = Staging(experts, capacity.experts_per_rank)
            direct = self._route is Route.DEVICE
            transport = (
                Direct(experts.device) if direct else HostStaged(experts.device, staging.largest)
            )
            self._runner = RoundRunner(experts, capacity.rank, staging, transport)
        return self._runner

    def _reserved(self, call: str) -> tuple[tuple[Transfer, ...], ...]:
        if self._rounds is None:
            raise LocalProtocolError(f"{call}: nothing is reserved")
        return self._rounds

    def _pairs_of(self, transfer: Transfer, staging: Staging) -> list[tuple[Tensor, Tensor]]:
        """Return what the commit of a transfer copies: (slot, staged) for each tensor."""
        staged = staging.layout(transfer.layer).parts(staging.buffer(transfer.dst_buffer))
        return self._experts.pairs(transfer.layer, transfer.dst_slot, staged)

    def _mismatch(self, transfer: Transfer, verdict: list[bool]) -> str:
        if verdict[0]:
            return f"{transfer}: its sender does not vouch for it, or something else arrived"
        names = self._experts.names(transfer.layer)
        wrong = [name for name, bad in zip(names, verdict[1:], strict=True) if bad]
        return f"{transfer}: {', '.join(map(repr, wrong))} differs from what its holder sealed"

    def _break(self, reason: str) -> None:
        lane, self._lane = self._lane, None
        self._broken = reason
        if lane is not None:
            lane.close()

    def _failure(self, reason: str) -> TransferError:
        """Count and remember a failure; the caller raises it."""
        self._failures += 1
        self._failed = self._failed or reason
        return TransferError(reason)
