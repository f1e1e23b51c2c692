"""One generation of the transport between ranks: a process group of our own, and batches over it.

Owns the group's construction from a store, its greeting and the batch of point-to-point operations.
It must not know experts or rounds. A lane that failed once is closed and never used again: the next
one has another number, hence other keys in the store.

The group is built from a store directly, as vLLM's stateless groups are: `dist.new_group` is a
collective of the whole world and registers globally, but a lane is rebuilt on the stager thread
while the engine serves. `dist.batch_isend_irecv` in turn demands a registered group (P2POp
translates global ranks), so its two steps are here: with a backend that coalesces (NCCL, HCCL) the
operations go between `_start_coalescing` and `_end_coalescing`, with gloo one after the other.

What gloo does (torch 2.13), and what that means here: a message longer than the posted receive
aborts the *process*, so ranks greet each other with a digest of their layouts first, and each
message has a tag of its own; a wait that times out closes every pair of the group at once, so that
no late byte reaches a buffer, and peers fail within milliseconds instead of waiting as well.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    Backend,
    PrefixStore,
    ProcessGroup,
    ProcessGroupGloo,
    Store,
    Work,
)

from eplbd.errors import ConfigError, TransferError
from eplbd.worker.torch_streams import mark_on, reached_within

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
"""Device type -> backend that moves its memory directly."""

_GREETING = 0x6570_6C62_6400_0001
"""First word of a greeting: "eplbd", and the version of the messages between ranks."""

_WATCHDOG = timedelta(days=1)
"""Timeout of NCCL's and HCCL's own watchdogs, whose remedy is to end the process. Ours is to give
up the lane: batches are bounded by `exchange`, the meeting by the timeout of the store's client."""

_LEAST_S = 0.001
"""What an operation gets after the deadline: finished ones are still told from failed ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """One message of a batch. what: names it in errors."""

    tensor: Tensor
    peer: int
    tag: int
    sends: bool
    what: str


@dataclass(frozen=True, slots=True)
class Seat:
    """Where this rank meets the others: a client of a store that only lanes use, rank, ranks."""

    store: Store
    rank: int
    ranks: int


class Lane:
    """Transport of generation `number`, for tensors on `device`. Construction meets all ranks.

    Raises TransferError where not every rank comes within `timeout_s`, or one of another layout.
    """

    def __init__(
        self, seat: Seat, number: int, device: torch.device, layout_digest: str, timeout_s: float
    ) -> None:
        self.number = number
        self._device = device
        self._timeout_s = timeout_s
        self._group = None if seat.ranks == 1 else _group(seat, number, device, timeout_s)
        try:
            if self._group is not None:
                self._greet(seat, int(layout_digest, 16))
        except TransferError:
            self.close()
            raise

    def exchange(self, legs: Sequence[Leg]) -> list[str]:
        """Run a batch to completion, at most for the timeout; return what failed, if anything did.

        Sends and receives of one pair of ranks must come in the same order on both. Whatever can be
        issued is issued and waited for, also after another operation failed. After a failure the
        lane must be closed.
        """
        group = self._group
        if group is None or not legs:
            return [f"{leg.what}: there is no other rank" for leg in legs]
        deadline = time.monotonic() + self._timeout_s
        if group._get_backend(self._device).supports_coalescing:  # noqa: SLF001 (see module)
            return self._exchange_at_once(group, legs, deadline)
        failures: list[str] = []
        works: list[tuple[Leg, Work]] = []
        for leg in legs:
            try:
                works.append((leg, _issue(group, leg)))
            except RuntimeError as error:
                failures.append(f"{leg.what}: {error}")
        for leg, work in works:
            left_s = max(deadline - time.monotonic(), _LEAST_S)
            try:
                work.wait(timedelta(seconds=left_s))
            except RuntimeError as error:
                failures.append(f"{leg.what}: {error}")
        return failures

    def close(self) -> None:
        """Give up the group; operations under way end. Idempotent."""
        group, self._group = self._group, None
        if group is not None:
            # A group that is already broken may refuse to be aborted: nothing is left to be done.
            with contextlib.suppress(RuntimeError):
                group.abort()

    def _exchange_at_once(
        self, group: ProcessGroup, legs: Sequence[Leg], deadline: float
    ) -> list[str]:
        """The batch of `batch_isend_irecv` where the backend starts all operations together."""
        mark = mark_on(self._device)
        try:
            group._start_coalescing(self._device)  # noqa: SLF001 (see module)
            try:
                for leg in legs:
                    _issue(group, leg)
            finally:
                work = group._end_coalescing(self._device)  # noqa: SLF001 (see module)
            work.wait()  # the stream waits, not this thread: hence the mark
            mark.record()
        except RuntimeError as error:
            return [f"{legs[0].what}, in a batch of {len(legs)}: {error}"]
        if not reached_within(mark, deadline):
            return [f"{leg.what}: not within {self._timeout_s} s" for leg in legs]
        return []

    def _greet(self, seat: Seat, digest: int) -> None:
        """Tell the next rank who we are and hear the previous one: all ranks take part, once round.

        NCCL wants every rank in a group's first batch. That neighbours agree all the way round
        means that all ranks agree.
        """
        before, after = (seat.rank - 1) % seat.ranks, (seat.rank + 1) % seat.ranks
        ours = [_GREETING, self.number, seat.rank, digest >> 32, digest & 0xFFFF_FFFF]
        told = torch.tensor(ours, dtype=torch.int64, device=self._device)
        heard = torch.zeros_like(told)
        where = f"lane {self.number}, greeting rank"
        failures = self.exchange(
            [
                Leg(told, after, 0, sends=True, what=f"{where} {after}"),
                Leg(heard, before, 0, sends=False, what=f"{where} {before}"),
            ]
        )
        if failures:
            raise TransferError("; ".join(failures))
        theirs: list[int] = heard.tolist()
        if theirs[:3] != [_GREETING, self.number, before]:
            raise TransferError(
                f"{where} {before}: heard {theirs[:3]}; ranks run different versions of eplbd"
            )
        if theirs[3:] != ours[3:]:
            raise TransferError(
                f"rank {before} has experts of layout {theirs[3] << 32 | theirs[4]:016x}, rank "
                f"{seat.rank} of {digest:016x}: all ranks need the same weights and quantisation"
            )


def _issue(group: ProcessGroup, leg: Leg) -> Work:
    if leg.sends:
        return group.send([leg.tensor], leg.peer, leg.tag)
    return group.recv([leg.tensor], leg.peer, leg.tag)


def _group(seat: Seat, number: int, device: torch.device, timeout_s: float) -> ProcessGroup:
    store = PrefixStore(f"eplbd/lane{number}", seat.store)
    kind = ProcessGroup.BackendType.CUSTOM
    try:
        match BACKENDS.get(device.type):
            case "gloo":
                timeout = timedelta(seconds=timeout_s)
                backend: Backend = ProcessGroupGloo(store, seat.rank, seat.ranks, timeout)
                kind = ProcessGroup.BackendType.GLOO
            case "nccl":
                backend = _nccl(store, seat)
                kind = ProcessGroup.BackendType.NCCL
            case "hccl":
                backend = _hccl(store, seat)
            case _:
                raise ConfigError(
                    f"no transport moves {device.type} memory directly; choose transport = 'host'"
                )
    except RuntimeError as error:
        raise TransferError(
            f"lane {number}: rank {seat.rank} could not meet all {seat.ranks} ranks "
            f"within {timeout_s} s: {error}"
        ) from error
    group = ProcessGroup(store, seat.rank, seat.ranks)
    group._set_default_backend(kind)  # noqa: SLF001 (see module)
    group._register_backend(device, kind, backend)  # noqa: SLF001 (see module)
    return group


def _nccl(store: Store, seat: Seat) -> Backend:
    # Only builds with NCCL have it.
    from torch._C._distributed_c10d import ProcessGroupNCCL  # noqa: PLC0415

    options = ProcessGroupNCCL.Options()
    options._timeout = _WATCHDOG  # noqa: SLF001 (there is no other name for it)
    return ProcessGroupNCCL(store, seat.rank, seat.ranks, options)


def _hccl(store: Store, seat: Seat) -> Backend:
    # As torch_npu's own registration does it. The module exists on machines with an NPU only.
    module = importlib.import_module("torch_npu._C._distributed_c10d")
    options = module.ProcessGroupHCCL.Options()
    options._timeout = _WATCHDOG  # noqa: SLF001 (there is no other name for it)
    options.global_ranks_in_group = []
    options.group_id = "eplbd"
    backend: Backend = module.ProcessGroupHCCL(store, seat.rank, seat.ranks, options)
    return backend
