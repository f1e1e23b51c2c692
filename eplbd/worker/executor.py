"""The executor seam: what moves weights for the agent, and the judge of what it is asked to move.

Owns the contract, one rank's work as values and its check against what the rank has. It must not
know how bytes travel (`torch_p2p`, `memory`), nor epochs, the register or the leader.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eplbd.core.rounds import Col
from eplbd.errors import TransferError


@dataclass(frozen=True, slots=True, eq=False)
class RankWork:
    """One epoch as one rank sees it.

    transfers: `[m, len(Col)]` int32, the rows in which `rank` is SRC or DST, in an order that both
    ends of a row agree on. rounds: of the whole epoch; a rank may have nothing to do in some.
    """

    rank: int
    rounds: int
    transfers: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a rank has, for the check of a work. experts_per_rank: staging buffers."""

    rank: int
    ranks: int
    layers: int
    slots_per_rank: int
    experts_per_rank: int


class Transfer(NamedTuple):
    """A row of a transfer table, fields in the order of `Col`. Slots and buffers are local."""

    round: int
    layer: int
    expert: int
    src: int
    src_slot: int
    src_buffer: int
    dst: int
    dst_slot: int
    dst_buffer: int

    @property
    def is_local(self) -> bool:
        """Both ends are the same rank: a copy, no message."""
        return self.src == self.dst

    def __str__(self) -> str:
        """Name the transfer as errors do."""
        route = f"rank {self.src} to rank {self.dst}"
        return f"round {self.round}, layer {self.layer}, expert {self.expert}, {route}"


@dataclass(frozen=True, slots=True)
class ExecutorStatistics:
    """Figures of one executor since it was made; sizes now, bytes and counts accumulated.

    staging_bytes: device memory of the staging buffers, 0 before the first reservation; host_bytes:
    pinned memory of a host-staged transport. bytes_sent and bytes_received do not count local
    copies. failures: TransferErrors raised.
    """

    lane: int
    staging_bytes: int
    host_bytes: int
    bytes_sent: int
    bytes_received: int
    bytes_copied: int
    rounds: int
    commits: int
    failures: int


class Executor(Protocol):
    """Moves expert weights of one rank: reserve, stage each round, verify, then commit or discard.

    Everything but `commit` is called from one stager thread; `commit` from the forward thread.
    Calls out of that order are our own bugs: LocalProtocolError.
    """

    @property
    def lane(self) -> int:
        """Generation of the transport in use or last tried; -1 before the first `renew`."""
        ...

    @property
    def lane_broken(self) -> bool:
        """No transfer between ranks is possible until all ranks `renew` with a greater lane."""
        ...

    @property
    def layout_digest(self) -> str:
        """16 hexadecimal digits over layers, names, dtypes and shapes; equal on all ranks."""
        ...

    @property
    def expert_bytes(self) -> int:
        """Bytes of the largest expert, all its tensors together."""
        ...

    def reserve(self, work: RankWork) -> None:
        """Claim staging buffers for `work`; the first call allocates them, for all time.

        Raises TransferError, naming the row at fault, for a work that needs more buffers than there
        are or names what this rank does not have. Then nothing is reserved.
        """
        ...

    def stage(self, round_index: int) -> None:
        """Run this rank's sends, receives and local copies of one round to completion.

        Bounded by the executor's timeout. Raises TransferError naming round, layer, expert and
        peer. A failure of this rank alone (memory, a kernel) still sends and receives everything
        and leaves the lane whole: the caller goes on to the remaining rounds, so that no peer
        waits, and never commits. A failure of the transport breaks the lane; then the remaining
        rounds fail at once, and the peers' fail with the connection.
        """
        ...

    def verify(self) -> None:
        """Compare every staged tensor with the checksum made by the rank that held it first.

        Raises TransferError naming layer, expert and tensor, or the round that failed.
        """
        ...

    def commit(self) -> None:
        """Copy staging to slots, in stream order: no wait, no allocation; addresses stay.

        Ends the reservation. Nothing to copy is a commit too.
        """
        ...

    def discard(self) -> None:
        """End the reservation without effect on any slot. Idempotent, also after `commit`."""
        ...

    def renew(self, lane: int) -> None:
        """Replace the transport; all ranks call it with the same, ever greater `lane`.

        Raises TransferError where the ranks do not all meet within the timeout or do not hold the
        same layout; that lane is spent then.
        """
        ...

    def statistics(self) -> ExecutorStatistics:
        """Figures so far; from any thread."""
        ...


def check_work(work: RankWork, capacity: Capacity) -> tuple[tuple[Transfer, ...], ...]:
    """Return the transfers of each round of `work`, in the order of its rows.

    Raises TransferError, naming the row, where `capacity` does not allow it. The agent has checked
    the map; this checks what the executor itself would come to harm by.
    """
    rows = work.transfers
    if work.rank != capacity.rank:
        raise TransferError(f"work is for rank {work.rank}, this is rank {capacity.rank}")
    if rows.ndim != 2 or rows.shape[1] != len(Col):
        raise TransferError(f"transfers have shape {rows.shape}, expected (rows, {len(Col)})")
    transfers = [Transfer(*row) for row in rows.tolist()]
    filled: dict[int, Transfer] = {}
    for transfer in transfers:
        _check_row(transfer, work, capacity)
        if transfer.dst == capacity.rank:
            _demand(transfer.dst_buffer not in filled, transfer, "reuses a staging buffer")
            filled[transfer.dst_buffer] = transfer
    for transfer in transfers:
        if transfer.src == capacity.rank and transfer.src_buffer >= 0:
            _check_relay(transfer, filled.get(transfer.src_buffer))
    _check_writes(filled)
    _check_sends(transfers, capacity)
    return tuple(
        tuple(transfer for transfer in transfers if transfer.round == index)
        for index in range(work.rounds)
    )


def _check_row(transfer: Transfer, work: RankWork, capacity: Capacity) -> None:
    mine = capacity.rank
    slots, buffers = range(capacity.slots_per_rank), range(capacity.experts_per_rank)
    _demand(mine in (transfer.src, transfer.dst), transfer, "concerns other ranks")
    _demand(transfer.src in range(capacity.ranks), transfer, "has no such source")
    _demand(transfer.dst in range(capacity.ranks), transfer, "has no such destination")
    _demand(transfer.round in range(work.rounds), transfer, f"is not within {work.rounds} rounds")
    _demand(transfer.layer in range(capacity.layers), transfer, "names an unknown layer")
    if transfer.src == mine:
        _demand(
            (transfer.src_slot in slots) != (transfer.src_buffer in buffers),
            transfer,
            f"reads slot {transfer.src_slot} and buffer {transfer.src_buffer}: one must exist",
        )
    if transfer.dst == mine:
        _demand(transfer.dst_slot in slots, transfer, f"writes slot {transfer.dst_slot}")
        _demand(
            transfer.dst_buffer in buffers,
            transfer,
            f"needs staging buffer {transfer.dst_buffer} of {capacity.experts_per_rank}: "
            "plan epochs of at most that many experts per rank, or raise experts_per_rank",
        )


def _check_relay(transfer: Transfer, filled: Transfer | None) -> None:
    _demand(filled is not None, transfer, f"reads buffer {transfer.src_buffer}: nothing fills it")
    if filled is not None:
        same = (filled.layer, filled.expert) == (transfer.layer, transfer.expert)
        _demand(same, transfer, f"reads a buffer that holds layer {filled.layer}'s {filled.expert}")
        _demand(filled.round < transfer.round, transfer, "reads a buffer before it is filled")


def _check_writes(filled: dict[int, Transfer]) -> None:
    written: set[tuple[int, int]] = set()
    for transfer in filled.values():
        place = (transfer.layer, transfer.dst_slot)
        _demand(place not in written, transfer, f"writes slot {transfer.dst_slot} a second time")
        written.add(place)


def _check_sends(transfers: list[Transfer], capacity: Capacity) -> None:
    """Bound what a round holds at once: a host-staged transport keeps a copy of each send."""
    sends = Counter(t.round for t in transfers if t.src == capacity.rank and not t.is_local)
    for index, count in sends.items():
        if count > capacity.experts_per_rank:
            raise TransferError(
                f"round {index}: rank {capacity.rank} sends {count} experts, "
                f"at most {capacity.experts_per_rank} at once"
            )


def _demand(good: bool, transfer: Transfer, complaint: str) -> None:  # noqa: FBT001
    if not good:
        raise TransferError(f"{transfer}: {complaint}")
