"""Executor and heat counters in numpy, for tests in which threads play the ranks of one process.

Owns a message exchange with the manners of the real one: two-sided, in lanes that all ranks enter
together, with timeouts that break a lane for everybody in it. It must not know torch. What the
executors promise is tested over this one and the torch one alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from eplbd.errors import LocalProtocolError, TransferError
from eplbd.worker.executor import Capacity, ExecutorStatistics, RankWork, Transfer, check_work
from eplbd.worker.ring import BLOCK_STEPS, check_shape

Tensors = Mapping[str, NDArray[np.generic]]
"""Name -> `[slots, ...]` of one layer."""

_Key = tuple[int, Transfer]
_Sealed = tuple[list[NDArray[np.uint8]], list[bytes]]
"""Bytes of each tensor, and the digests that their first holder made of them."""


class MemoryFabric:
    """What connects the executors of `ranks` threads."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._changed = threading.Condition()
        self._present: dict[int, dict[int, str]] = {}
        self._broken: dict[int, str] = {}
        self._posted: dict[_Key, _Sealed] = {}

    def enter(self, lane: int, rank: int, digest: str, timeout_s: float) -> None:
        """Meet all ranks in `lane`. TransferError where one stays away or has another layout."""
        with self._changed:
            present = self._present.setdefault(lane, {})
            present[rank] = digest
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: len(present) == self.ranks, timeout_s):
                missing = sorted(set(range(self.ranks)) - set(present))
                raise TransferError(f"lane {lane}: ranks {missing} did not come in {timeout_s} s")
        if len(set(present.values())) > 1:
            raise TransferError(f"lane {lane}: layouts differ: {present}")

    def leave(self, lane: int, reason: str) -> None:
        """Break `lane` for every rank in it."""
        with self._changed:
            self._broken.setdefault(lane, reason)
            self._changed.notify_all()

    def post(self, lane: int, transfer: Transfer, sealed: _Sealed) -> None:
        """Offer what `transfer` sends."""
        with self._changed:
            self._posted[lane, transfer] = sealed
            self._changed.notify_all()

    def take(self, lane: int, transfer: Transfer, deadline: float) -> _Sealed:
        """Return what `transfer` receives."""
        self._wait(lane, transfer, lambda: (lane, transfer) in self._posted, deadline)
        with self._changed:
            self._changed.notify_all()
            return self._posted.pop((lane, transfer))

    def taken(self, lane: int, transfer: Transfer, deadline: float) -> None:
        """Wait until the peer has taken what `transfer` sent."""
        self._wait(lane, transfer, lambda: (lane, transfer) not in self._posted, deadline)

    def _wait(
        self, lane: int, transfer: Transfer, done: Callable[[], bool], deadline: float
    ) -> None:
        left_s = max(0.0, deadline - time.monotonic())
        with self._changed:
            if not self._changed.wait_for(lambda: done() or lane in self._broken, left_s):
                raise TransferError(f"{transfer}: the peer did not come in time")
            if not done():
                raise TransferError(f"{transfer}: {self._broken[lane]}")


class MemoryExecutor:
    """The executor of `rank` over `fabric`; see `Executor`. layers: weights, written in place."""

    def __init__(
        self,
        fabric: MemoryFabric,
        rank: int,
        layers: Sequence[Tensors],
        *,
        experts_per_rank: int = 2,
        timeout_s: float = 10.0,
    ) -> None:
        self._fabric = fabric
        self._layers = layers
        self._timeout_s = timeout_s
        slots = len(next(iter(layers[0].values())))
        self._capacity = Capacity(rank, fabric.ranks, len(layers), slots, experts_per_rank)
        self._lane = -1
        self._broken = "no lane yet"
        self._buffers: dict[int, _Sealed] = {}
        self._rounds: tuple[tuple[Transfer, ...], ...] | None = None
        self._staged: set[int] = set()
        self._failed = ""
        self._verified: tuple[Transfer, ...] | None = None
        self._sent = self._received = self._copied = 0
        self._round_count = self._commits = self._failures = 0

    @property
    def lane(self) -> int:
        """See `Executor`."""
        return self._lane

    @property
    def lane_broken(self) -> bool:
        """See `Executor`."""
        return bool(self._broken)

    @property
    def layout_digest(self) -> str:
        """See `Executor`."""
        named = [
            [(n, a.dtype.str, a.shape[1:]) for n, a in layer.items()] for layer in self._layers
        ]
        return blake2b(repr(named).encode(), digest_size=8).hexdigest()

    @property
    def expert_bytes(self) -> int:
        """See `Executor`."""
        return max(sum(array[:1].nbytes for array in layer.values()) for layer in self._layers)

    def staging(self, index: int) -> NDArray[np.uint8]:
        """Return the bytes of the first tensor in a staging buffer, to be damaged by a test."""
        return self._buffers[index][0][0]

    def renew(self, lane: int) -> None:
        """See `Executor`."""
        if self._rounds is not None or lane <= self._lane:
            raise LocalProtocolError(f"renew({lane}): lane {self._lane}, reserved {self._rounds}")
        self._fabric.leave(self._lane, f"rank {self._capacity.rank} left for lane {lane}")
        self._lane, self._broken = lane, f"lane {lane} never came up"
        try:
            self._fabric.enter(lane, self._capacity.rank, self.layout_digest, self._timeout_s)
        except TransferError:
            self._failures += 1
            raise
        self._broken = ""

    def reserve(self, work: RankWork) -> None:
        """See `Executor`."""
        if self._rounds is not None:
            raise LocalProtocolError("reserve: the last work was neither committed nor discarded")
        try:
            self._rounds = check_work(work, self._capacity)
        except TransferError:
            self._failures += 1
            raise
        self._failed = ""
        self._staged.clear()
        self._buffers.clear()

    def stage(self, round_index: int) -> None:
        """See `Executor`."""
        transfers = self._reserved("stage")[round_index]
        if round_index in self._staged:
            raise LocalProtocolError(f"stage: round {round_index} was staged already")
        self._staged.add(round_index)
        if not transfers:
            return
        if self._broken:
            raise self._failure(f"{transfers[0]}: the lane is broken: {self._broken}")
        try:
            self._exchange(transfers, time.monotonic() + self._timeout_s)
        except TransferError as error:
            self._broken = str(error)
            self._fabric.leave(self._lane, f"rank {self._capacity.rank} gave up: {error}")
            raise self._failure(str(error)) from error
        self._round_count += 1

    def verify(self) -> None:
        """See `Executor`."""
        rounds = self._reserved("verify")
        if len(self._staged) < len(rounds):
            raise LocalProtocolError(f"verify: staged {len(self._staged)} of {len(rounds)} rounds")
        if self._failed:
            raise self._failure(f"not everything was staged: {self._failed}")
        mine = self._capacity.rank
        incoming = tuple(each for transfers in rounds for each in transfers if each.dst == mine)
        for transfer in incoming:
            parts, digests = self._buffers[transfer.dst_buffer]
            for name, part, sealed in zip(
                self._layers[transfer.layer], parts, digests, strict=True
            ):
                if _digest(part) != sealed:
                    raise self._failure(f"{transfer}: {name!r} differs from what its holder sealed")
        self._verified = incoming

    def discard(self) -> None:
        """See `Executor`."""
        self._verified = None
        self._rounds = None

    def commit(self) -> None:
        """See `Executor`."""
        verified, self._verified = self._verified, None
        if verified is None:
            raise LocalProtocolError("commit: nothing was verified")
        for transfer in verified:
            slots = self._parts(transfer.layer, transfer.dst_slot)
            for slot, staged in zip(slots, self._buffers[transfer.dst_buffer][0], strict=True):
                slot[:] = staged
        self._commits += 1
        self._rounds = None

    def statistics(self) -> ExecutorStatistics:
        """See `Executor`."""
        return ExecutorStatistics(
            lane=self._lane,
            staging_bytes=self._capacity.experts_per_rank * self.expert_bytes,
            host_bytes=0,
            bytes_sent=self._sent,
            bytes_received=self._received,
            bytes_copied=self._copied,
            rounds=self._round_count,
            commits=self._commits,
            failures=self._failures,
        )

    def _exchange(self, transfers: tuple[Transfer, ...], deadline: float) -> None:
        mine, lane = self._capacity.rank, self._lane
        sends = [each for each in transfers if each.src == mine and not each.is_local]
        for transfer in sends:
            sealed = self._source(transfer)
            self._fabric.post(lane, transfer, sealed)
            self._sent += _nbytes(sealed)
        for transfer in transfers:
            if transfer.is_local:
                self._buffers[transfer.dst_buffer] = self._source(transfer)
                self._copied += _nbytes(self._buffers[transfer.dst_buffer])
            elif transfer.dst == mine:
                self._buffers[transfer.dst_buffer] = self._fabric.take(lane, transfer, deadline)
                self._received += _nbytes(self._buffers[transfer.dst_buffer])
        for transfer in sends:
            self._fabric.taken(lane, transfer, deadline)

    def _source(self, transfer: Transfer) -> _Sealed:
        """Return a copy of what a transfer sends: a live slot, newly sealed, or a buffer unread."""
        if transfer.src_buffer >= 0:
            parts, digests = self._buffers[transfer.src_buffer]
            return [part.copy() for part in parts], digests
        parts = self._parts(transfer.layer, transfer.src_slot)
        return [part.copy() for part in parts], [_digest(part) for part in parts]

    def _parts(self, layer: int, slot: int) -> list[NDArray[np.uint8]]:
        """Return the slot's tensors as flat views of live memory."""
        return [
            np.atleast_1d(array[slot : slot + 1]).reshape(-1).view(np.uint8)
            for array in self._layers[layer].values()
        ]

    def _reserved(self, call: str) -> tuple[tuple[Transfer, ...], ...]:
        if self._rounds is None:
            raise LocalProtocolError(f"{call}: nothing is reserved")
        return self._rounds

    def _failure(self, reason: str) -> TransferError:
        self._failures += 1
        self._failed = self._failed or reason
        return TransferError(reason)


class MemoryCounters:
    """The heat ring's counters in numpy; see `Counters`. `held` keeps shipped blocks under way."""

    def __init__(self, layers: int, columns: int, *, blocks: int = 4) -> None:
        check_shape(layers, columns, blocks)
        self.pass_counts = np.zeros((layers, columns), dtype=np.int32)
        self.pass_routed = np.zeros(1, dtype=np.int64)
        self.held = False
        self.blocks = blocks
        self._counts = np.zeros((blocks, BLOCK_STEPS, layers, columns), dtype=np.int32)
        self._routed = np.zeros((blocks, BLOCK_STEPS), dtype=np.int64)

    def keep(self, block: int, step: int) -> None:
        """See `Counters`."""
        self._counts[block, step] = self.pass_counts
        self._routed[block, step] = self.pass_routed[0]
        self.drop()

    def drop(self) -> None:
        """See `Counters`."""
        self.pass_counts.fill(0)
        self.pass_routed.fill(0)

    def ship(self, block: int) -> None:
        """See `Counters`. The memory is the host's already."""

    def shipped(self, block: int) -> bool:
        """See `Counters`."""
        return not self.held

    def read(self, block: int, steps: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """See `Counters`."""
        return self._counts[block, :steps].copy(), self._routed[block, :steps].copy()


def _digest(part: NDArray[np.uint8]) -> bytes:
    return blake2b(part.tobytes(), digest_size=8).digest()


def _nbytes(sealed: _Sealed) -> int:
    return sum(part.nbytes for part in sealed[0])
