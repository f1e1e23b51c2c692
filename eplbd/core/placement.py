"""Which expert each slot holds, and how its tokens are split: placement, its checks, its load.

Owns `Placement`, `validate` (the only judge of an answer from outside; it rejects, it never
repairs) and the load and PAR arithmetic. It must not know why a placement was chosen, how its
weights travel, nor the tables that engines read (`maps`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from eplbd.core.shares import (
    Parts,
    Shares,
    as_shares,
    check_form,
    check_shares,
    even_parts,
    settle,
)
from eplbd.errors import PlacementError

if TYPE_CHECKING:
    from eplbd.core.topology import Topology

Slots = NDArray[np.int32]
"""`[layers, ranks, slots_per_rank]` int32, logical expert id of every slot."""

_DIMENSIONS = 3

_SUMMED_AT_ONCE = 1 << 17
"""Loads of ranks, as float64 a megabyte: what a core's own cache holds."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """The logical expert in every slot of every layer.

    slots: `[layers, ranks, slots_per_rank]` int32, C-contiguous and read-only; a writable array or
    another integer dtype is copied, never aliased. experts: logical experts per layer. shares: of
    the same shape, float32, the fraction of its expert's tokens that each slot takes; None splits
    them evenly over the expert's slots. Equality and hash go by `digest`. Only the form is checked
    here (PlacementError); whether it can be served is `validate`'s question.
    """

    slots: Slots
    experts: int
    shares: Shares | None = None
    _digest: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        _check_form(self.slots)
        if not _is_published(self.slots, np.int32):
            slots = np.array(self.slots, dtype=np.int32, order="C")
            if not np.array_equal(slots, self.slots):
                raise PlacementError(
                    f"placement: {self.slots.dtype} values beyond int32; return logical expert ids"
                )
            slots.setflags(write=False)
            object.__setattr__(self, "slots", slots)
        if self.shares is not None:
            check_form(self.shares, self.slots.shape)
            if not _is_published(self.shares, np.float32):
                shares = np.array(self.shares, dtype=np.float32, order="C")
                shares.setflags(write=False)
                object.__setattr__(self, "shares", shares)

    @classmethod
    def split(cls, slots: Slots, experts: int, parts: Parts) -> Self:
        """Give every slot its `parts` of `shares.WHOLE`; no shares where all splits are even."""
        even = np.array_equal(parts, even_parts(slots, experts))
        return cls(slots, experts, None if even else as_shares(parts))

    @classmethod
    def linear(cls, layers: int, experts: int, ranks: int, slots_per_rank: int) -> Self:
        """The engines' initial layout: experts 0..E-1, copies of 0, 1, 2, ..., cut into ranks."""
        row = np.arange(ranks * slots_per_rank, dtype=np.int32) % experts
        slots = np.broadcast_to(row, (layers, row.size)).reshape(layers, ranks, slots_per_rank)
        return cls(slots, experts)

    @property
    def layers(self) -> int:
        """Number of MoE layers."""
        return int(self.slots.shape[0])

    @property
    def ranks(self) -> int:
        """Number of EP ranks."""
        return int(self.slots.shape[1])

    @property
    def slots_per_rank(self) -> int:
        """Physical experts per rank and layer."""
        return int(self.slots.shape[2])

    @property
    def has_duplicates(self) -> bool:
        """Whether some rank holds an expert twice in a layer, as an engine's own layout may."""
        return bool(_twice(self.slots).any())

    @property
    def digest(self) -> str:
        """16 hexadecimal digits: blake2b over shape, experts and contents; computed once."""
        if not self._digest:
            head = np.array((*self.slots.shape, self.experts), dtype="<i8").tobytes()
            body = self.slots.astype("<i4", copy=False).tobytes()
            if self.shares is not None:
                body += (self.shares + 0.0).astype("<f4").tobytes()  # -0.0 is no other share
            digest = blake2b(head + body, digest_size=8).hexdigest()
            object.__setattr__(self, "_digest", digest)
        return self._digest

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def replicas(self) -> NDArray[np.int32]:
        """`[layers, experts]` int32, number of slots that hold each expert."""
        return count_replicas(self.slots.reshape(self.layers, -1), self.experts)

    def hosts(self) -> NDArray[np.bool_]:
        """`[layers, ranks, experts]` bool, whether the rank holds the expert in any slot."""
        hosted = np.zeros((self.layers, self.ranks, self.experts), dtype=np.bool_)
        np.put_along_axis(hosted, self.slots.astype(np.intp), values=True, axis=2)
        return hosted

    def moves_from(self, current: Placement) -> NDArray[np.int64]:
        """`[layers]` int64 experts newly hosted by a rank, on the way here from `current`."""
        moves: NDArray[np.int64] = (self.hosts() & ~current.hosts()).sum((1, 2))
        return moves

    def parts(self) -> Parts:
        """`[layers, ranks, slots_per_rank]` int32: the settled shares in parts of `shares.WHOLE`.

        Those of an even split where there are no shares.
        """
        if self.shares is None:
            return even_parts(self.slots, self.experts)
        return settle(self.shares, self.slots, self.experts)

    def with_layers(
        self,
        layers: NDArray[np.integer],
        rows: NDArray[np.integer],
        parts: Parts | None = None,
    ) -> Placement:
        """Return a copy in which `layers` (`[n]`) hold `rows` (`[n, ranks, slots_per_rank]`).

        parts: `[n, ranks, slots_per_rank]`, what the slots of these layers take; None splits
        evenly. Where there are shares, the result's are settled.
        """
        slots = self.slots.copy()
        slots[layers] = rows
        slots.setflags(write=False)
        if parts is None and self.shares is None:
            return Placement(slots, self.experts)
        whole = self.parts().copy()
        whole[layers] = even_parts(slots[layers], self.experts) if parts is None else parts
        return Placement.split(slots, self.experts, whole)


def validate(
    placement_array: object,
    *,
    experts: int,
    topology: Topology,
    layers: int,
    allow_duplicates: bool = False,
    shares: object = None,
) -> Placement:
    """Turn arrays from outside into a Placement, or say exactly what is wrong with them.

    placement_array: expected to be an integer ndarray `[layers, ranks, slots_per_rank]` in which
    every layer places every expert 0..experts-1 and, unless `allow_duplicates`, no rank holds an
    expert twice. It is copied before its contents are judged, so a writer on the other side cannot
    change them afterwards. shares: None, or floats of that shape that sum to 1 over the replicas of
    each expert, within `shares.TOLERANCE`; they come back in whole parts of `shares.WHOLE`, and as
    None where that is an even split. Raises PlacementError naming layer, rank and slot, or layer
    and expert; repairs nothing.
    """
    array = _check_form(placement_array)
    expected = (layers, topology.ranks, topology.slots_per_rank)
    if array.shape != expected:
        raise PlacementError(
            f"placement: shape {array.shape}, expected {expected} "
            "(layers, ranks, slots_per_rank); keep the shape of the current placement"
        )
    if experts > topology.slots:
        raise PlacementError(
            f"placement: {experts} experts cannot fit into {topology.ranks} ranks x "
            f"{topology.slots_per_rank} slots; raise the number of redundant experts"
        )
    slots = np.array(array, order="C")
    _check_range(slots, experts)
    slots = slots.astype(np.int32)
    check_complete(slots, experts)
    if not allow_duplicates:
        _check_duplicates(slots)
    slots.setflags(write=False)
    if shares is None:
        return Placement(slots, experts)
    own = np.array(shares) if type(shares) is np.ndarray else shares
    given = check_shares(own, slots, experts)
    return Placement.split(slots, experts, settle(given, slots, experts))


def _is_published(array: NDArray[np.generic], dtype: type[np.generic]) -> bool:
    """Whether nobody can write to `array` any more, neither here nor through what it views."""
    base = array.base
    shared = isinstance(base, np.ndarray) and base.flags.writeable
    return (
        array.dtype == dtype
        and array.flags.c_contiguous
        and not array.flags.writeable
        and not shared
    )


def _check_form(array: object) -> NDArray[np.integer]:
    # Exactly ndarray: a masked array or a matrix means something else by the same operations.
    if type(array) is not np.ndarray:
        raise PlacementError(
            f"placement: got {type(array).__name__}, expected a plain numpy.ndarray; "
            "return numpy.asarray(...)"
        )
    if array.dtype.kind not in "iu":
        raise PlacementError(
            f"placement: dtype {array.dtype}, expected an integer dtype; "
            "return expert ids as int32, for example array.astype(numpy.int32)"
        )
    if array.ndim != _DIMENSIONS:
        raise PlacementError(
            f"placement: {array.ndim} dimensions, expected {_DIMENSIONS} "
            "(layers, ranks, slots_per_rank); reshape it"
        )
    return array


def _check_range(slots: NDArray[np.integer], experts: int) -> None:
    wrong = (slots < 0) | (slots >= experts)
    if wrong.any():
        layer, rank, slot = (int(i) for i in np.argwhere(wrong)[0])
        raise PlacementError(
            f"placement: layer {layer}, rank {rank}, slot {slot} holds expert "
            f"{int(slots[layer, rank, slot])}, expected 0..{experts - 1} "
            f"({int(wrong.sum())} such slots); fill every slot with a logical expert id",
            layer=layer,
            rank=rank,
            slot=slot,
        )


def check_complete(slots: Slots, experts: int) -> None:
    """Raise PlacementError where a layer of `slots` holds an expert nowhere."""
    missing = count_replicas(slots.reshape(slots.shape[0], -1), experts) == 0
    if missing.any():
        layer, expert = (int(i) for i in np.argwhere(missing)[0])
        raise PlacementError(
            f"placement: layer {layer} holds expert {expert} in no slot, expected every expert at "
            f"least once ({int(missing[layer].sum())} missing in this layer, "
            f"{int(missing.any(1).sum())} such layers); give it a slot of an expert with replicas",
            layer=layer,
        )


def _check_duplicates(slots: Slots) -> None:
    twice = _twice(slots)
    if twice.any():
        layer, rank = (int(i) for i in np.argwhere(twice)[0])
        row = slots[layer, rank].tolist()
        slot = next(s for s, expert in enumerate(row) if expert in row[:s])
        raise PlacementError(
            f"placement: layer {layer}, rank {rank}, slot {slot} holds expert {row[slot]} again "
            f"(first in slot {row.index(row[slot])}), expected distinct experts on a rank "
            f"({int(twice.sum())} such ranks); put the replica on another rank or allow duplicates",
            layer=layer,
            rank=rank,
            slot=slot,
        )


def _twice(slots: Slots) -> NDArray[np.bool_]:
    """`[layers, ranks]`, whether the rank holds some expert more than once."""
    ordered = np.sort(slots, axis=2)
    twice: NDArray[np.bool_] = (ordered[:, :, 1:] == ordered[:, :, :-1]).any(2)
    return twice


def count_replicas(flat: NDArray[np.integer], experts: int) -> NDArray[np.int32]:
    """`[n, experts]` int32 from `flat` `[n, slots]` of expert ids in 0..experts-1."""
    n = flat.shape[0]
    keys = (flat + np.arange(n, dtype=np.int64)[:, None] * experts).ravel()
    return np.bincount(keys, minlength=n * experts).reshape(n, experts).astype(np.int32)


def rank_load(placement: Placement, heat: NDArray[np.generic]) -> NDArray[np.float64]:
    """`[..., layers, ranks]` load from `heat` `[..., layers, experts]`.

    An expert's heat is split by the placement's shares; without any evenly over its replicas, which
    is what `log2phy` aims at.
    """
    row = np.arange(placement.layers)[:, None, None]
    load: NDArray[np.float64]
    if placement.shares is not None:
        taken = heat[..., row, placement.slots] * placement.shares.astype(np.float64)
        load = taken.sum(-1)
        return load
    share = (heat / np.maximum(placement.replicas(), 1)).reshape(-1, *heat.shape[-2:])
    load = np.empty((len(share), placement.layers, placement.ranks))
    # Some layers at once and slot by slot: what is summed stays in the cache. All of 1,024 ranks
    # are a hundred megabytes, and take half as long again; of 4,096 ranks, four times as long.
    at_once = max(1, _SUMMED_AT_ONCE // max(1, len(share) * placement.ranks))
    for begin in range(0, placement.layers, at_once):
        some = slice(begin, begin + at_once)
        slots = placement.slots[some]
        of = share[:, some].reshape(len(share), len(slots) * placement.experts)
        first, *others = (slots + row[: len(slots)] * placement.experts).transpose(2, 0, 1)
        summed = of.take(first.ravel(), axis=1)
        for keys in others:
            summed += of.take(keys.ravel(), axis=1)
        load[:, some] = summed.reshape(len(share), *slots.shape[:2])
    return load.reshape(*heat.shape[:-1], placement.ranks)


def even_shares(placement: Placement) -> Shares:
    """`[layers, ranks, slots_per_rank]` float32: 1 / replicas, what a slot takes without shares.

    To start from where a policy changes a few: `Placement(slots, experts, shares)`.
    """
    counts = placement.replicas()
    row = np.arange(placement.layers)[:, None, None]
    return (1.0 / counts[row, placement.slots]).astype(np.float32)


def par(rank_load: NDArray[np.generic]) -> NDArray[np.float64]:
    """Peak-to-average ratio over the last axis of `rank_load` `[..., ranks]`: 1.0 is perfect.

    1.0 as well where the mean is 0: nothing was routed, so nothing waited.
    """
    load = np.asarray(rank_load, dtype=np.float64)
    mean = load.mean(-1)
    busy = mean > 0
    return np.where(busy, load.max(-1) / np.where(busy, mean, 1.0), 1.0)
