"""A trace in one npz file: `heat`, `topk`, `labels`, `meta`. The form in which traces are shared.

Owns that format, in both directions. Must not know what a row stands for (steps, windows, whole
workloads): `meta` says so in words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplbd.errors import ConfigError
from eplbd.traces.arrays import fault, read_arrays, write_arrays

_ARRAYS = ("heat", "topk", "labels", "meta")
_LARGEST_TOTAL = 1 << 62
"""Heat of all experts times topk has to stay below this, in int64."""


@dataclass(frozen=True, slots=True, eq=False)
class HeatTrace:
    """Measured routing of a real model.

    heat: `[windows, layers, experts]` int64, read-only: (token, expert) assignments in each window.
    topk: experts counted per token. labels: one text per window, possibly empty. meta: provenance.
    """

    heat: NDArray[np.int64]
    topk: int
    labels: tuple[str, ...]
    meta: Mapping[str, object]

    @property
    def windows(self) -> int:
        """Number of windows."""
        return int(self.heat.shape[0])

    @property
    def layers(self) -> int:
        """Number of MoE layers."""
        return int(self.heat.shape[1])

    @property
    def experts(self) -> int:
        """Logical experts per layer."""
        return int(self.heat.shape[2])

    def label(self, window: int) -> str:
        """What a window is called."""
        return self.labels[window] or f"window {window}"

    def thinned(self, layers: int) -> HeatTrace:
        """The same with at most `layers` layers, evenly spaced, the first and the last included."""
        if self.layers <= layers:
            return self
        kept = np.linspace(0, self.layers - 1, layers).round().astype(np.int64)
        heat = self.heat[:, kept]
        heat.setflags(write=False)
        return HeatTrace(heat, self.topk, self.labels, self.meta)


def load_trace(path: Path) -> HeatTrace:
    """Read a trace, or raise ConfigError naming the file, the array and what was expected."""
    arrays = read_arrays("trace", path, _ARRAYS)
    heat, topk = _heat(path, arrays["heat"], arrays["topk"])
    return HeatTrace(heat, topk, _labels(path, arrays["labels"], heat), _meta(path, arrays["meta"]))


def save_trace(path: Path, trace: HeatTrace) -> None:
    """Write a trace so that it is there whole or not at all. Raises OSError."""
    heat = trace.heat
    narrow = heat.astype(np.min_scalar_type(int(heat.max(initial=0))))
    write_arrays(
        path,
        {
            "heat": narrow,
            "topk": np.array(trace.topk, dtype=np.int64),
            "labels": np.array(trace.labels, dtype=np.str_),
            "meta": np.array(json.dumps(dict(trace.meta))),
        },
    )


def _heat(
    path: Path, heat: NDArray[np.generic], topk: NDArray[np.generic]
) -> tuple[NDArray[np.int64], int]:
    if heat.dtype.kind not in "iu" or heat.ndim != 3 or 0 in heat.shape:
        raise _fault(
            path,
            f"heat is {heat.dtype} {list(heat.shape)}",
            "integers [windows, layers, experts], none of them 0",
        )
    experts = heat.shape[2]
    if topk.dtype.kind not in "iu" or topk.shape != () or not 1 <= int(topk) <= experts:
        raise _fault(
            path, f"topk is {topk.dtype} {topk.tolist()!r}", f"one integer within 1..{experts}"
        )
    k, counts = int(topk), heat.astype(np.int64)
    limit = _LARGEST_TOTAL // (k * experts)
    wrong = (counts < 0) | (counts >= limit)
    if wrong.any():
        window, layer, expert = np.argwhere(wrong)[0].tolist()
        raise _fault(
            path,
            f"heat of window {window}, layer {layer}, expert {expert} is "
            f"{heat[window, layer, expert]}",
            f"counts within 0..{limit - 1}",
        )
    counts.setflags(write=False)
    return counts, k


def _labels(path: Path, labels: NDArray[np.generic], heat: NDArray[np.int64]) -> tuple[str, ...]:
    windows = heat.shape[0]
    if labels.dtype.kind != "U" or labels.shape != (windows,):
        raise _fault(
            path,
            f"labels is {labels.dtype} {list(labels.shape)}",
            f"text [{windows}], one per window, empty where there is nothing to say",
        )
    return tuple(str(label) for label in labels)


def _meta(path: Path, meta: NDArray[np.generic]) -> Mapping[str, object]:
    if meta.dtype.kind != "U" or meta.shape != ():
        raise _fault(path, f"meta is {meta.dtype} {list(meta.shape)}", "one text of JSON")
    try:
        decoded: object = json.loads(str(meta))
    except ValueError as error:
        raise _fault(path, f"meta is not JSON ({error})", "a JSON object") from error
    if not isinstance(decoded, dict):
        raise _fault(path, f"meta is a JSON {type(decoded).__name__}", "a JSON object")
    return decoded


def _fault(path: Path, found: str, expected: str) -> ConfigError:
    return fault("trace", path, found, expected)
