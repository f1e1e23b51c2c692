"""A recorded trace: a directory with `meta.json` and chunks of steps. Its layout, and reading it.

Owns the layout and every check. Must not know who writes (that is `writer`) or what a placement is
worth. One directory is one life of one group: in it forwards and epochs only count up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import Placement, validate
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, PlacementError
from eplbd.traces.arrays import Arrays, fault, read_arrays

META = "meta.json"
CHUNK = "chunk-{:08d}.npz"
CHUNKS = "chunk-????????.npz"

PHASES = ("unknown", "prefill", "decode", "mixed")
"""What the numbers in a chunk's `phase` mean: bits of `prefill` (1) and `decode` (2), joined."""

UNKNOWN_TOKENS = -1

_PER_STEP = {"forward": "i", "epoch": "i", "phase": "u", "tokens": "i", "dummy": "b"}
_ARRAYS = (*_PER_STEP, "counts", "placement_epoch", "placements")

_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class TraceMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`meta.json`: what the steps of one recording have in common.

    model: fingerprint of the model, empty where nobody knows. topk: experts counted per token; 0
    where unknown. layer_numbers: the model's own number of each MoE layer (dense layers counted),
    empty where unknown. node_of: node id of each rank. expert_bytes: weights and scales of one
    expert of one layer; 0 where unknown. counts: what the engine counted, tokens `received` by
    slots or `sent` to them. phases: what the numbers in `phase` mean.
    """

    format: Literal["eplbd trace"] = "eplbd trace"
    version: Literal[1] = 1
    model: str = ""
    layers: _Count
    experts: _Count
    topk: _Natural = 0
    layer_numbers: tuple[_Natural, ...] = ()
    ranks: _Count
    slots_per_rank: _Count
    node_of: tuple[_Natural, ...]
    expert_bytes: _Natural = 0
    counts: Literal["received", "sent"] = "received"
    phases: tuple[str, ...] = PHASES

    def topology(self) -> Topology:
        """The group. Raises ConfigError where ranks, slots and nodes do not describe one."""
        return Topology(self.ranks, self.slots_per_rank, self.node_of)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Consecutive steps, oldest first; arrays are read-only.

    forward, epoch: `[steps]` int64, forward ascending; epoch is that of the placement which the
    step ran under. phase: `[steps]` uint8, index into `PHASES`. tokens: `[steps]` int64 valid
    tokens over all ranks, -1 where unknown. dummy: `[steps]` bool. counts: `[steps, layers,
    experts]`, tokens per logical expert in the narrowest unsigned type. placements: by epoch, as
    far as known.
    """

    forward: NDArray[np.int64]
    epoch: NDArray[np.int64]
    phase: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    dummy: NDArray[np.bool_]
    counts: NDArray[np.generic]
    placements: Mapping[int, Placement]

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.forward)


def load_meta(directory: Path) -> TraceMeta:
    """`meta.json` of a recording, or ConfigError naming file and field."""
    path = directory / META
    try:
        octets = path.read_bytes()
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
        raise _fault(path, found, "the meta.json of a recorded trace") from error
    try:
        meta = msgspec.json.decode(octets, type=TraceMeta)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _fault(path, f"is not one of ours ({error})", "format `eplbd trace` 1") from error
    if meta.phases != PHASES:
        raise _fault(path, f"phases is {list(meta.phases)}", f"{list(PHASES)}")
    if meta.layer_numbers and len(meta.layer_numbers) != meta.layers:
        found = f"layer_numbers has {len(meta.layer_numbers)} entries"
        raise _fault(path, found, f"one per layer: {meta.layers}")
    try:
        meta.topology()
    except ConfigError as error:
        raise ConfigError(f"recording {path}: {error}") from error
    return meta


def chunk_paths(directory: Path) -> list[Path]:
    """Files of whole chunks, oldest first."""
    return sorted(directory.glob(CHUNKS))


def load_chunks(directory: Path, meta: TraceMeta) -> Iterator[Chunk]:
    """Every chunk, oldest first, one in memory at a time. Raises ConfigError."""
    for path in chunk_paths(directory):
        yield load_chunk(path, meta)


def load_chunk(path: Path, meta: TraceMeta) -> Chunk:
    """One chunk, or ConfigError naming file, array and what was expected."""
    arrays = read_arrays("recording", path, _ARRAYS)
    counts = arrays["counts"]
    shape = (len(counts) if counts.ndim else 0, meta.layers, meta.experts)
    if counts.dtype.kind != "u" or counts.shape != shape or not shape[0]:
        found = f"counts is {counts.dtype} {list(counts.shape)}"
        raise _fault(path, found, f"unsigned integers [steps, {meta.layers}, {meta.experts}]")
    for name, kind in _PER_STEP.items():
        array = arrays[name]
        if array.dtype.kind != kind or array.shape != shape[:1]:
            found = f"{name} is {array.dtype} {list(array.shape)}"
            raise _fault(path, found, f"one {_KINDS[kind]} for each of {shape[0]} steps")
    _check_steps(path, arrays)
    placements = _placements(path, meta, arrays)
    for array in arrays.values():
        array.setflags(write=False)
    return Chunk(
        forward=arrays["forward"].astype(np.int64, copy=False),
        epoch=arrays["epoch"].astype(np.int64, copy=False),
        phase=arrays["phase"].astype(np.uint8, copy=False),
        tokens=arrays["tokens"].astype(np.int64, copy=False),
        dummy=arrays["dummy"].astype(np.bool_, copy=False),
        counts=counts,
        placements=placements,
    )


_KINDS = {"i": "integer", "u": "unsigned integer", "b": "bool"}


def _check_steps(path: Path, arrays: Arrays) -> None:
    forward, phase = arrays["forward"].astype(np.int64), arrays["phase"].astype(np.int64)
    for name, wrong, expected in (
        ("forward", np.diff(forward, prepend=-1) <= 0, "ascending numbers from 0"),
        ("epoch", arrays["epoch"].astype(np.int64) < 0, "0 or more"),
        ("phase", phase >= len(PHASES), f"0..{len(PHASES) - 1}"),
        ("tokens", arrays["tokens"].astype(np.int64) < UNKNOWN_TOKENS, "-1 (unknown) or more"),
    ):
        if wrong.any():
            step = int(np.flatnonzero(wrong)[0])
            raise _fault(path, f"{name} of step {step} is {arrays[name][step]}", expected)


def _placements(path: Path, meta: TraceMeta, arrays: Arrays) -> dict[int, Placement]:
    epochs, slots = arrays["placement_epoch"], arrays["placements"]
    if epochs.dtype.kind != "i" or epochs.ndim != 1 or len(set(epochs.tolist())) != len(epochs):
        found = f"placement_epoch is {epochs.dtype} {list(epochs.shape)}"
        raise _fault(path, found, "distinct integers [placements]")
    if slots.ndim != 4 or len(slots) != len(epochs):
        found = f"placements is {slots.dtype} {list(slots.shape)}"
        raise _fault(path, found, f"[{len(epochs)}, layers, ranks, slots_per_rank]")
    topology, placed = meta.topology(), {}
    for epoch, rows in zip(epochs.tolist(), slots, strict=True):
        try:
            placed[epoch] = validate(
                rows,
                experts=meta.experts,
                topology=topology,
                layers=meta.layers,
                allow_duplicates=True,
            )
        except PlacementError as error:
            raise ConfigError(f"recording {path}: epoch {epoch}: {error}") from error
    return placed


def _fault(path: Path, found: str, expected: str) -> ConfigError:
    return fault("recording", path, found, expected)
