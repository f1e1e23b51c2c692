"""Expert weights for tests: small, of every kind that an engine has, a function of their place.

Names, dtypes and shapes of one slot. The sizes are awkward on purpose: below a checksum's row and
above it, multiples of eight and not, so that slots of a stack start anywhere.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LAYERS = 3
SLOTS = 3


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor. dtype as torch names it; bits as numpy holds them; stacked: `[slots, ...]`."""

    name: str
    dtype: str
    bits: str
    shape: tuple[int, ...]
    stacked: bool = True


SPECS = (
    Spec("w13", "bfloat16", "<u2", (33, 131)),
    Spec("w13_scale", "float32", "<u4", (), stacked=True),
    Spec("w2", "int8", "u1", (17, 1031)),
    Spec("w2_scale", "int64", "<u8", (5,), stacked=False),
)
"""Of even layers; odd ones have the first two only, so that layouts differ between layers."""


def specs_of(layer: int) -> tuple[Spec, ...]:
    return SPECS if layer % 2 == 0 else SPECS[:2]


def slot_bytes(rank: int, layer: int, slot: int, spec: Spec) -> bytes:
    """What a slot holds at first."""
    seed = hashlib.blake2b(repr((rank, layer, slot, spec.name)).encode()).digest()
    count = int(np.prod(spec.shape)) * np.dtype(spec.bits).itemsize
    return np.random.default_rng(list(seed[:16])).bytes(count)


def contents(rank: int, layer: int, slot: int) -> dict[str, bytes]:
    """Every tensor of a slot at first."""
    return {spec.name: slot_bytes(rank, layer, slot, spec) for spec in specs_of(layer)}


def stacked(rank: int, layer: int, spec: Spec) -> NDArray[np.generic]:
    """`[slots, ...]` of one tensor, writable."""
    joined = b"".join(slot_bytes(rank, layer, slot, spec) for slot in range(SLOTS))
    return np.frombuffer(joined, dtype=spec.bits).reshape(SLOTS, *spec.shape).copy()
