"""One round of one rank: seal what leaves, exchange, and stage what arrives.

Owns the rule that a failure of this rank alone leaves no peer waiting: whatever can still be sent
and received is, what cannot be vouched for leaves under a broken seal, and the failure is reported
afterwards. It must not know what rounds precede or follow, nor what becomes of a broken lane.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from eplbd.errors import TransferError
from eplbd.worker.executor import Transfer
from eplbd.worker.torch_experts import ExpertTensors
from eplbd.worker.torch_lane import Lane, Leg
from eplbd.worker.torch_staging import Staging, break_seal
from eplbd.worker.torch_streams import Mark, mark_on, reached_within
from eplbd.worker.torch_transport import Cargo, Transport


@dataclass(slots=True)
class RoundReport:
    """What a round came to. Bytes are of tensors, without headers.

    failures: of this rank alone. broken: why the lane failed, "" if it did not.
    """

    failures: list[str] = field(default_factory=list)
    broken: str = ""
    sent: int = 0
    received: int = 0
    copied: int = 0


class RoundRunner:
    """Runs rounds of `rank` on the calling thread's current stream."""

    def __init__(
        self, experts: ExpertTensors, rank: int, staging: Staging, transport: Transport
    ) -> None:
        self.staging = staging
        self.transport = transport
        self._experts = experts
        self._rank = rank
        self._mark: Mark = mark_on(experts.device)

    def run(self, transfers: tuple[Transfer, ...], lane: Lane, timeout_s: float) -> RoundReport:
        """Run the round to completion; exchange and copies are each bounded by `timeout_s`."""
        report = RoundReport()
        legs: list[Leg] = []
        leaving: list[Cargo] = []
        arriving: list[Cargo] = []
        for transfer in transfers:
            if transfer.is_local:
                self._copy(transfer, report)
            elif transfer.src == self._rank:
                leaving.append(self._source(transfer, len(leaving), report))
                legs += self._load(leaving[-1], len(leaving) - 1, report)
            else:
                arriving.append(self._staged(transfer, transfer.dst_buffer))
                legs += self.transport.expect(arriving[-1], len(arriving) - 1)
        if self.transport.device != self._experts.device:
            self._settle("copies to the host", timeout_s, report)
        broken = lane.exchange(legs)
        if broken:
            report.broken = "; ".join(broken)
            return report
        self._unload(arriving, report)
        self._settle("staging", timeout_s, report)
        report.sent = sum(sum(cargo.layout.sizes) for cargo in leaving)
        report.received = sum(sum(cargo.layout.sizes) for cargo in arriving)
        return report

    def _source(self, transfer: Transfer, index: int, report: RoundReport) -> Cargo:
        """Return what a transfer sends: a live slot, newly sealed, or a buffer as it arrived."""
        if transfer.src_buffer >= 0:
            return self._staged(transfer, transfer.src_buffer)
        layout = self.staging.layout(transfer.layer)
        header = layout.header(self.staging.outgoing(index))
        try:
            parts = self._experts.parts(transfer.layer, transfer.src_slot)
            self.staging.seal(header, transfer.layer, transfer.expert, parts)
        except (RuntimeError, TransferError) as error:
            report.failures.append(f"{transfer}: {error}")
            break_seal(header)
            # The peer waits for messages of this size; of any content, under a broken seal.
            parts = layout.parts(self.staging.buffer(0))
        return Cargo(transfer, layout, header, parts)

    def _load(self, cargo: Cargo, index: int, report: RoundReport) -> list[Leg]:
        def failed(error: RuntimeError) -> None:
            report.failures.append(f"{cargo.transfer}: {error}")

        return self.transport.load(cargo, index, failed)

    def _unload(self, arriving: list[Cargo], report: RoundReport) -> None:
        for index, cargo in enumerate(arriving):
            try:
                self.transport.unload(cargo, index)
            except RuntimeError as error:
                report.failures.append(f"{cargo.transfer}: {error}")

    def _copy(self, transfer: Transfer, report: RoundReport) -> None:
        target = self._staged(transfer, transfer.dst_buffer)
        try:
            if transfer.src_buffer >= 0:
                source = self._staged(transfer, transfer.src_buffer)
                target.header.copy_(source.header)
            else:
                parts = self._experts.parts(transfer.layer, transfer.src_slot)
                self.staging.seal(target.header, transfer.layer, transfer.expert, parts)
                source = Cargo(transfer, target.layout, target.header, parts)
            for there, here in zip(target.parts, source.parts, strict=True):
                there.copy_(here)
        except (RuntimeError, TransferError) as error:
            report.failures.append(f"{transfer}: {error}")
            return
        report.copied += sum(target.layout.sizes)

    def _staged(self, transfer: Transfer, index: int) -> Cargo:
        layout, buffer = self.staging.layout(transfer.layer), self.staging.buffer(index)
        return Cargo(transfer, layout, layout.header(buffer), layout.parts(buffer))

    def _settle(self, what: str, timeout_s: float, report: RoundReport) -> None:
        """Wait until what the stream was given is done; on a CPU it is."""
        self._mark.record()
        if not reached_within(self._mark, time.monotonic() + timeout_s):
            report.failures.append(f"{what} on {self._experts.device}: not within {timeout_s} s")


def collect(verdicts: list[torch.Tensor], timeout_s: float) -> list[list[bool]]:
    """Bring bool tensors of one device to the host, waiting at most `timeout_s`.

    Raises RuntimeError where the device is not done by then.
    """
    if not verdicts:
        return []
    flat = torch.cat(verdicts)
    host = torch.empty(flat.shape, dtype=torch.bool, pin_memory=flat.device.type != "cpu")
    host.copy_(flat, non_blocking=True)
    mark = mark_on(flat.device)
    mark.record()
    if not reached_within(mark, time.monotonic() + timeout_s):
        raise RuntimeError(f"{flat.device} is not done within {timeout_s} s")
    flags: list[bool] = host.tolist()
    ends = accumulate(len(each) for each in verdicts)
    return [flags[end - len(each) : end] for each, end in zip(verdicts, ends, strict=True)]
