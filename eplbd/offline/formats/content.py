"""What every format is converted through: a trace, or a placement with its layers' numbers.

Owns these values and the one form of a refusal. Must not know any format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.traces.archive import HeatTrace
from eplbd.traces.placements import checked

Kind: TypeAlias = Literal["trace", "placement"]

LARGEST = 1 << 48
"""Counts above this are no counts."""


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """A placement. layer_numbers: the model's own number of each layer, dense layers counted."""

    placement: Placement
    layer_numbers: tuple[int, ...]


Content: TypeAlias = HeatTrace | Mapped


@dataclass(slots=True)
class Context:
    """What a file does not say, and what the operator should know afterwards.

    ranks: of a placement that is one row of slots. topk: experts counted per token. first_layer:
    the model's number of the first MoE layer, for formats that count dense layers. notes: sentences
    about what was dropped or assumed.
    """

    ranks: int | None = None
    topk: int | None = None
    first_layer: int | None = None
    notes: list[str] = field(default_factory=list)

    def needed_topk(self, name: str, path: Path) -> int:
        """The operator's topk, or ConfigError: this format does not tell."""
        if self.topk is None:
            raise ConfigError(
                f"{name} {path}: does not say how many experts each token takes; give --topk"
            )
        return self.topk

    def needed_ranks(self, name: str, path: Path, slots: int) -> int:
        """The operator's number of ranks, or ConfigError: this format does not tell."""
        if self.ranks is None:
            raise ConfigError(
                f"{name} {path}: does not say over how many ranks its {slots} slots are cut; "
                "give --ranks"
            )
        if slots % self.ranks:
            raise ConfigError(
                f"{name} {path}: {slots} slots over {self.ranks} ranks; expected equal blocks"
            )
        return self.ranks

    def numbers(self, layers: int, own: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The model's number of each layer: the operator's, else the file's own, else from 0."""
        if self.first_layer is not None or not own:
            first = self.first_layer or 0
            return tuple(range(first, first + layers))
        return own


Reader: TypeAlias = Callable[[Path, Context], Content]
Writer: TypeAlias = Callable[[Path, Content, Context], None]


def trace_of(
    name: str, path: Path, heat: NDArray[np.generic], topk: int, meta: dict[str, object]
) -> HeatTrace:
    """A trace from a file's `[rows, layers, experts]`. Raises ConfigError naming the place."""
    if heat.dtype.kind not in "iu" or heat.ndim != 3 or 0 in heat.shape:
        found = f"counts are {heat.dtype} {list(heat.shape)}"
        raise ConfigError(
            f"{name} {path}: {found}; expected integers [rows, layers, experts], none of them 0"
        )
    if not 1 <= topk <= heat.shape[2]:
        raise ConfigError(f"{name} {path}: topk is {topk}; expected 1..{heat.shape[2]}")
    counts = heat.astype(np.int64)
    wrong = (counts < 0) | (counts > LARGEST)
    if wrong.any():
        row, layer, expert = np.argwhere(wrong)[0].tolist()
        raise ConfigError(
            f"{name} {path}: row {row}, layer {layer}, expert {expert} counts "
            f"{heat[row, layer, expert]}; expected 0..2**48"
        )
    counts.setflags(write=False)
    return HeatTrace(
        counts, topk, ("",) * len(counts), {"source": path.name, "format": name} | meta
    )


def placement_of(name: str, path: Path, rows: list[list[list[int]]]) -> Placement:
    """A placement from equally long lists of one layer, rank and slot after the other.

    The experts are those that occur. Raises ConfigError naming layer and rank.
    """
    if not rows or not rows[0] or not rows[0][0]:
        raise ConfigError(f"{name} {path}: is empty; expected layers, ranks and slots")
    ranks, per_rank = len(rows[0]), len(rows[0][0])
    for layer, devices in enumerate(rows):
        if len(devices) != ranks:
            raise ConfigError(
                f"{name} {path}: layer {layer} has {len(devices)} ranks; expected {ranks}"
            )
        for rank, held in enumerate(devices):
            if len(held) != per_rank:
                raise ConfigError(
                    f"{name} {path}: layer {layer}, rank {rank} holds {len(held)} experts; "
                    f"expected {per_rank} as the first"
                )
    largest = max(max(held) for devices in rows for held in devices)
    if largest >= ranks * per_rank:
        raise ConfigError(
            f"{name} {path}: names expert {largest}, but a layer has {ranks * per_rank} slots; "
            "expected every expert in every layer"
        )
    slots = np.array(rows, dtype=np.int64)
    return checked(name, path, slots, largest + 1)


def read_text(name: str, path: Path) -> str:
    """A text file, or ConfigError naming it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name} {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} {path}: is not UTF-8 at byte {error.start}") from error
