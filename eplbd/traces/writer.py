"""Writing a recorded trace: steps are gathered into chunks, chunks appear whole, old ones go.

Owns the file names, the rotation and the cap on disk. It blocks and belongs in a thread. Must not
know where steps come from.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError, LocalProtocolError
from eplbd.traces.arrays import write_arrays, write_text
from eplbd.traces.recording import (
    CHUNK,
    CHUNKS,
    META,
    PHASES,
    UNKNOWN_TOKENS,
    TraceMeta,
    chunk_paths,
    load_meta,
)

_STEP = ("forward", "epoch", "phase", "tokens", "dummy")
_DTYPES = {"forward": "i8", "epoch": "i8", "phase": "u1", "tokens": "i8", "dummy": "?"}
_KEPT_PLACEMENTS = 8


class TraceWriter:
    """Appends steps to the recording in `directory`; one thread at a time.

    meta: what all steps have in common; a directory that records something else is refused, one of
    the same is continued. chunk_steps: steps per file. max_bytes: on disk; the oldest chunks go
    first, the newest always stays. A crash loses the steps since the last chunk and nothing else.

    Raises:
        ConfigError: the directory cannot be used or holds another recording.
    """

    def __init__(
        self,
        directory: Path,
        meta: TraceMeta,
        *,
        chunk_steps: int = 256,
        max_bytes: int = 1 << 30,
    ) -> None:
        if min(chunk_steps, max_bytes) < 1:
            raise LocalProtocolError(f"trace writer: {chunk_steps} steps, {max_bytes} bytes")
        self._directory, self._meta = directory, meta
        self._chunk_steps, self._max_bytes = chunk_steps, max_bytes
        _prepare(directory, meta)
        self._sizes = {path: path.stat().st_size for path in chunk_paths(directory)}
        self._next = max((int(path.stem[-8:]) for path in self._sizes), default=-1) + 1
        self._placements: dict[int, Placement] = {}
        self._steps: list[tuple[int, int, int, int, bool, NDArray[np.integer]]] = []
        self.dropped_chunks = 0
        """Chunks deleted to stay within `max_bytes`."""

    @property
    def bytes(self) -> int:
        """Size of all chunks on disk."""
        return sum(self._sizes.values())

    def placed(self, epoch: int, placement: Placement) -> None:
        """Learn the placement of an epoch; it is stored beside the steps that ran under it."""
        self._placements.pop(epoch, None)
        self._placements[epoch] = placement
        # Steps in the buffer may be older than the newest few epochs.
        needed = {step[1] for step in self._steps}
        for known in [*self._placements][:-_KEPT_PLACEMENTS]:
            if known not in needed:
                del self._placements[known]

    def add(
        self,
        heat: NDArray[np.integer],
        *,
        forward: int,
        epoch: int,
        phase: int = 0,
        tokens: int = UNKNOWN_TOKENS,
        dummy: bool = False,
    ) -> None:
        """Append one step; writes a chunk when enough have come together.

        heat: `[layers, experts]`, tokens per logical expert, none negative; not copied. phase:
        index into `PHASES`, as the ledger's phase bits are. Steps may come out of order within a
        chunk. Raises OSError where the disk refuses; the steps of that chunk are gone then.
        """
        shape = (self._meta.layers, self._meta.experts)
        if heat.shape != shape or heat.dtype.kind not in "iu" or heat.min() < 0:
            raise LocalProtocolError(
                f"trace writer: heat is {heat.dtype} {heat.shape}, expected counts {shape}"
            )
        if not 0 <= phase < len(PHASES) or min(forward, epoch) < 0:
            raise LocalProtocolError(
                f"trace writer: forward {forward}, epoch {epoch}, phase {phase}"
            )
        self._steps.append((forward, epoch, phase, tokens, dummy, heat))
        if len(self._steps) >= self._chunk_steps:
            self.flush()

    def flush(self) -> None:
        """Write what has come together, if anything, as a chunk. Raises OSError."""
        steps = {step[0]: step for step in self._steps}  # the last account of a forward counts
        self._steps = []
        if not steps:
            return
        ordered = [steps[forward] for forward in sorted(steps)]
        counts = np.stack([step[5] for step in ordered])
        arrays: dict[str, NDArray[np.generic]] = {
            name: np.array([step[i] for step in ordered], dtype=_DTYPES[name])
            for i, name in enumerate(_STEP)
        }
        arrays["counts"] = counts.astype(np.min_scalar_type(int(counts.max())))
        arrays.update(self._known({step[1] for step in ordered}))
        path = self._directory / CHUNK.format(self._next)
        self._next += 1
        self._sizes[path] = write_arrays(path, arrays)
        self._rotate()

    def close(self) -> None:
        """Write the rest. Raises OSError."""
        self.flush()

    def _known(self, epochs: set[int]) -> dict[str, NDArray[np.generic]]:
        """The placements of `epochs`, as far as they were told."""
        known = [epoch for epoch in sorted(epochs) if epoch in self._placements]
        meta = self._meta
        slots = np.empty((len(known), meta.layers, meta.ranks, meta.slots_per_rank), dtype=np.int32)
        for i, epoch in enumerate(known):
            slots[i] = self._placements[epoch].slots
        return {"placement_epoch": np.array(known, dtype=np.int64), "placements": slots}

    def _rotate(self) -> None:
        while self.bytes > self._max_bytes and len(self._sizes) > 1:
            oldest = next(iter(self._sizes))
            oldest.unlink(missing_ok=True)
            del self._sizes[oldest]
            self.dropped_chunks += 1


@contextlib.contextmanager
def recording(
    directory: Path, meta: TraceMeta, *, chunk_steps: int = 256, max_bytes: int = 1 << 30
) -> Iterator[TraceWriter]:
    """A writer for the block; what is left when it ends is written."""
    writer = TraceWriter(directory, meta, chunk_steps=chunk_steps, max_bytes=max_bytes)
    try:
        yield writer
    finally:
        writer.close()


def _prepare(directory: Path, meta: TraceMeta) -> None:
    """Make the directory, or see that it holds the same recording; clear drafts of a crash."""
    try:
        directory.mkdir(mode=0o750, exist_ok=True)
        for draft in (directory / f"{META}.new", *directory.glob(f"{CHUNKS}.new")):
            draft.unlink(missing_ok=True)
        if not (directory / META).exists():
            if any(directory.iterdir()):
                raise ConfigError(
                    f"recording {directory}: holds something else and no {META}; give an empty "
                    "or a new directory"
                )
            text = msgspec.json.format(msgspec.json.encode(meta), indent=2).decode()
            write_text(directory / META, f"{text}\n")
        if not os.access(directory, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise ConfigError(f"recording {directory}: cannot be used: {error.strerror}") from error
    found = load_meta(directory)
    if found != meta:
        different = [n for n in meta.__struct_fields__ if getattr(found, n) != getattr(meta, n)]
        raise ConfigError(
            f"recording {directory}: is of another group or model ({', '.join(different)} "
            "differ); give a new directory"
        )
