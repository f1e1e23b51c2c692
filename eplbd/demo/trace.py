"""A recorded heat trace as the demo's routing: strict reading, and token choices drawn from it.

Owns the trace format (arrays `heat`, `topk`, `labels`, `meta` in one npz) and the sampling. It must
not know torch, steps or ranks.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from eplbd.errors import ConfigError

_ARRAYS = ("heat", "topk", "labels", "meta")
_LARGEST_TOTAL = 1 << 62
"""Cumulative heat times topk has to stay below this, in int64."""


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

    def sample(self, window: int, tokens: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`[layers, tokens, topk]` int64: each token's distinct experts, as often as in the window.

        An expert is chosen for a token with probability `topk * heat / total` exactly. Drawing one
        after the other without replacement would not keep that (it flattens the hot ones), so this
        is systematic sampling (Madow 1949): experts lie on a circle in random order, each as long
        as its heat, and a token takes those under `topk` evenly spaced hands. In integers, so that
        no rounding makes two hands meet.
        """
        heat = self.heat[window]
        chosen = np.empty((self.layers, tokens, self.topk), dtype=np.int64)
        for layer in range(self.layers):
            order = rng.permutation(self.experts)
            total = int(heat[layer].sum())
            ends = np.cumsum(heat[layer][order]) * self.topk
            hands = rng.integers(total, size=(tokens, 1)) + total * np.arange(self.topk)
            chosen[layer] = order[np.searchsorted(ends, hands, side="right")]
        return chosen


def load_trace(path: Path) -> HeatTrace:
    """Read a trace, or raise ConfigError naming the file, the array and what was expected."""
    arrays = _arrays(path)
    heat, topk = _heat(path, arrays["heat"], arrays["topk"])
    return HeatTrace(heat, topk, _labels(path, arrays["labels"], heat), _meta(path, arrays["meta"]))


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    # The file is opened here because numpy leaves it open where its contents are damaged.
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, NpzFile):
                raise _fault(path, "is a single array", "an npz file")
            missing = ", ".join(name for name in _ARRAYS if name not in archive)
            if missing:
                raise _fault(path, f"has no {missing}", f"the arrays {', '.join(_ARRAYS)}")
            return {name: archive[name] for name in _ARRAYS}
    except FileNotFoundError:
        raise _fault(path, "does not exist", "an npz file") from None
    except (OSError, BadZipFile, EOFError, ValueError, MemoryError, zlib.error) as error:
        raise _fault(path, f"cannot be read ({error})", "an npz file of plain arrays") from error


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
    _check_tokens(path, counts, k)
    counts.setflags(write=False)
    return counts, k


def _check_tokens(path: Path, heat: NDArray[np.int64], topk: int) -> None:
    """A window's tokens are its heat / topk, and no expert is chosen by more tokens than these."""
    total = heat.sum(2)
    if (total < topk).any():
        window, layer = np.argwhere(total < topk)[0].tolist()
        raise _fault(
            path,
            f"window {window}, layer {layer} has {int(total[window, layer])} assignments",
            f"at least one token's: topk is {topk}",
        )
    tokens = total // topk
    over = heat > tokens[:, :, None]
    if over.any():
        window, layer, expert = np.argwhere(over)[0].tolist()
        raise _fault(
            path,
            f"window {window}, layer {layer} counts expert {expert} "
            f"{int(heat[window, layer, expert])} times",
            f"at most once for each of its {int(tokens[window, layer])} tokens (heat / topk)",
        )


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
    return ConfigError(f"trace {path}: {found}; expected {expected}")
