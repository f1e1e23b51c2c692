"""A trace on disk as the windows that a policy would have seen, one after the other.

Owns the choice between the two forms of a trace and the cutting. Must not know policies or what is
computed from a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplbd.core.heat import PHASES
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.traces.archive import HeatTrace, load_trace
from eplbd.traces.recording import META, TraceMeta, load_chunks, load_meta

Rows = NDArray[np.int32]
"""`[rows, layers, experts]` int32: steps, or windows where a trace holds no steps."""

_LARGEST = int(np.iinfo(np.int32).max)
_BITS = {"all": (0, 1, 2, 3), "prefill": (1,), "decode": (2,)}


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """What a trace holds.

    rows: `[rows, layers, experts]` int32, oldest first, read-only. are_steps: whether a row is one
    forward; otherwise PAR over rows is below what a step pays, for a sum is smoother than its
    parts. phases: `[rows]` uint8, index into `recording.PHASES`. says: what a row is, in words.
    initial: the placement of the oldest steps, where it was recorded.
    """

    path: Path
    rows: Rows
    are_steps: bool
    phases: NDArray[np.uint8]
    topk: int
    says: str
    expert_bytes: int = 0
    meta: TraceMeta | None = None
    initial: Placement | None = None

    @property
    def layers(self) -> int:
        """Number of MoE layers."""
        return int(self.rows.shape[1])

    @property
    def experts(self) -> int:
        """Logical experts per layer."""
        return int(self.rows.shape[2])

    def only(self, phase: str) -> Recorded:
        """The same with the rows of one phase, as the daemon files them; `all` is everything."""
        if phase not in PHASES:
            raise ConfigError(f"phase {phase!r}; expected {', '.join(PHASES)}")
        kept = np.isin(self.phases, _BITS[phase])
        if kept.all():
            return self
        if not kept.any():
            raise ConfigError(
                f"trace {self.path}: has no step of phase {phase}; it tells of "
                f"{len(self.phases)} steps of other or unknown phase"
            )
        return replace(self, rows=_published(self.rows[kept]), phases=self.phases[kept])


def load(path: Path) -> Recorded:
    """A trace in either form. Raises ConfigError naming file, place and what was expected."""
    if path.is_dir() or path.name == META:
        return _recording(path if path.is_dir() else path.parent)
    return _archive(path, load_trace(path))


def cut(rows: Rows, windows: int) -> list[Rows]:
    """At most `windows` windows of equally many rows; a remainder of newest rows is left out.

    Raises ConfigError where fewer than two come out: one is planned on, the next is judged.
    """
    count = min(windows, len(rows))
    if count < 2:
        raise ConfigError(
            f"{len(rows)} rows in {windows} windows: at least two windows are needed, one to plan "
            "on and the next to judge on"
        )
    return np.split(rows[: len(rows) // count * count], count)


def _archive(path: Path, trace: HeatTrace) -> Recorded:
    if int(trace.heat.max()) > _LARGEST:
        window, layer, expert = np.argwhere(trace.heat > _LARGEST)[0].tolist()
        raise ConfigError(
            f"trace {path}: heat of window {window}, layer {layer}, expert {expert} is "
            f"{trace.heat[window, layer, expert]}; a policy is shown int32, at most {_LARGEST}"
        )
    says = trace.meta.get("window")
    return Recorded(
        path=path,
        rows=_published(trace.heat.astype(np.int32)),
        are_steps=trace.meta.get("rows") == "steps",
        phases=np.zeros(trace.windows, dtype=np.uint8),
        topk=trace.topk,
        says=says if isinstance(says, str) else "a window",
    )


def _recording(directory: Path) -> Recorded:
    meta = load_meta(directory)
    counts: list[NDArray[np.generic]] = []
    phases: list[NDArray[np.uint8]] = []
    initial: Placement | None = None
    for chunk in load_chunks(directory, meta):
        real = ~chunk.dummy
        counts.append(chunk.counts[real])
        phases.append(chunk.phase[real])
        if initial is None:
            initial = chunk.placements.get(int(chunk.epoch[0]))
    rows = _joined(counts, meta)
    if not len(rows):
        raise ConfigError(f"recording {directory}: holds no step with tokens")
    if int(rows.max()) > _LARGEST:
        raise ConfigError(f"recording {directory}: counts beyond int32")
    return Recorded(
        path=directory,
        rows=_published(rows.astype(np.int32)),
        are_steps=True,
        phases=np.concatenate(phases),
        topk=meta.topk,
        says="one forward",
        expert_bytes=meta.expert_bytes,
        meta=meta,
        initial=initial,
    )


def _joined(counts: Sequence[NDArray[np.generic]], meta: TraceMeta) -> NDArray[np.generic]:
    empty = np.zeros((0, meta.layers, meta.experts), dtype=np.uint8)
    return np.concatenate([empty, *counts])


def _published(rows: Rows) -> Rows:
    rows.setflags(write=False)
    return rows
