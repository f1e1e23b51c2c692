"""How much of an expert's tokens each of its slots takes, where that is not simply an even split.

Owns the arithmetic of shares on plain arrays: what is wrong with them, the even split, and their
settled form in whole parts of `WHOLE`, which every rank computes to the same bits. It must not know
why shares were chosen or how an engine routes by them.

Source of the idea: LPLB and SGLang's dispatch by linear program, which split tokens unevenly inside
the engine. Here a policy may, once per plan.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from eplbd.errors import PlacementError

Shares: TypeAlias = NDArray[np.float32]
"""`[layers, ranks, slots_per_rank]` float32 in [0, 1]: the fraction of its expert's tokens that
each slot takes; over the slots of an expert they sum to 1."""

Parts: TypeAlias = NDArray[np.int32]
"""The same in whole parts of `WHOLE`, as they travel; over the slots of an expert they sum to it
exactly."""

WHOLE = 1 << 16
"""A 65,536th of the hottest expert's tokens is less than one token of a step; and float32 holds
every such fraction exactly, so that parts and shares are one value."""

TOLERANCE = 1e-3
"""By how much the shares of an expert may miss 1: hundreds of them rounded to three digits do."""


def check_shares(shares: object, slots: NDArray[np.int32], experts: int) -> NDArray[np.floating]:
    """Return `shares` as an array, or raise PlacementError naming layer and expert.

    slots: `[layers, ranks, slots_per_rank]`, every expert placed.
    """
    array = check_form(shares, slots.shape)
    wrong = ~np.isfinite(array) | (array < 0)
    if wrong.any():
        layer, rank, slot = (int(i) for i in np.argwhere(wrong)[0])
        raise PlacementError(
            f"shares: layer {layer}, expert {slots[layer, rank, slot]}: its share in slot {slot} "
            f"of rank {rank} is {array[layer, rank, slot]}, expected a finite number from 0 to 1",
            layer=layer,
            rank=rank,
            slot=slot,
        )
    total = _totals(array.astype(np.float64), slots, experts)
    off = np.abs(total - 1.0) > TOLERANCE
    if off.any():
        layer, expert = (int(i) for i in np.argwhere(off)[0])
        raise PlacementError(
            f"shares: layer {layer}, expert {expert}: the shares of its replicas sum to "
            f"{total[layer, expert]:.6g}, expected 1 within {TOLERANCE:g} ({int(off.sum())} such "
            "experts); divide them by their sum",
            layer=layer,
        )
    return array


def check_form(shares: object, shape: tuple[int, ...]) -> NDArray[np.floating]:
    """Return `shares`, known to be a plain array of floats of `shape`; raise PlacementError."""
    if type(shares) is not np.ndarray or shares.dtype.kind != "f":
        what = shares.dtype if isinstance(shares, np.ndarray) else type(shares).__name__
        raise PlacementError(
            f"shares: got {what}, expected a plain numpy.ndarray of a floating dtype; "
            "return fractions as float32, or None to split evenly"
        )
    if shares.shape != shape:
        raise PlacementError(
            f"shares: shape {shares.shape}, expected that of the slots, {shape}; "
            "give one fraction per slot"
        )
    return shares


def settle(shares: NDArray[np.floating], slots: NDArray[np.int32], experts: int) -> Parts:
    """The whole parts nearest to checked `shares`: the largest remainders get what is left.

    Idempotent: parts divided by `WHOLE` settle to themselves. Of equal remainders the slots with
    the lowest global ids come first.
    """
    layers = slots.shape[0]
    keys = _keys(slots, experts)
    given = shares.astype(np.float64).ravel()
    exact = given / np.bincount(keys, given, layers * experts)[keys] * WHOLE
    whole = np.floor(exact)
    left = WHOLE - np.bincount(keys, whole, layers * experts)
    order = np.lexsort((np.arange(keys.size), whole - exact, keys))
    parts = whole.astype(np.int32)
    parts[order] += _places(keys[order]) < left[keys[order]]
    parts = parts.reshape(slots.shape)
    parts.setflags(write=False)
    return parts


def check_parts(parts: Parts, slots: NDArray[np.int32], experts: int) -> None:
    """Raise PlacementError where `parts` are not those of a whole for every expert in `slots`."""
    if parts.shape != slots.shape:
        raise PlacementError(f"parts: shape {parts.shape}, expected {slots.shape}")
    if ((parts < 0) | (parts > WHOLE)).any():
        raise PlacementError(f"parts: {parts.min()} to {parts.max()}, expected 0 to {WHOLE}")
    off = np.argwhere(_totals(parts.astype(np.float64), slots, experts) != WHOLE)
    if off.size:
        row, expert = (int(i) for i in off[0])
        raise PlacementError(f"parts: row {row}, expert {expert}: its slots' do not sum to {WHOLE}")


def even_parts(slots: NDArray[np.int32], experts: int) -> Parts:
    """What an even split settles to: its replicas' parts of an expert differ by one at most."""
    keys = _keys(slots, experts)
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(keys, minlength=slots.shape[0] * experts)[keys]
    parts = (WHOLE // counts).astype(np.int32)
    parts[order] += _places(keys[order]) < (WHOLE % counts)[order]
    parts = parts.reshape(slots.shape)
    parts.setflags(write=False)
    return parts


def as_shares(parts: Parts) -> Shares:
    """Parts as fractions; exact, read-only."""
    shares = (parts / WHOLE).astype(np.float32)
    shares.setflags(write=False)
    return shares


def _keys(slots: NDArray[np.int32], experts: int) -> NDArray[np.int64]:
    """`[layers * ranks * slots_per_rank]`: layer and expert of every slot, in one number."""
    layer = np.arange(slots.shape[0], dtype=np.int64)[:, None, None]
    keys: NDArray[np.int64] = (layer * experts + slots).ravel()
    return keys


def _places(ordered: NDArray[np.int64]) -> NDArray[np.intp]:
    """How many equal keys come before each of the `ordered` ones."""
    place = np.arange(ordered.size)
    first = np.where(np.diff(ordered, prepend=-1) != 0, place, 0)
    return place - np.maximum.accumulate(first)


def _totals(
    shares: NDArray[np.float64], slots: NDArray[np.int32], experts: int
) -> NDArray[np.float64]:
    """`[layers, experts]`: sum of the shares of each expert's slots."""
    size = slots.shape[0] * experts
    totals = np.bincount(_keys(slots, experts), shares.ravel(), size).astype(np.float64)
    return totals.reshape(slots.shape[0], experts)
