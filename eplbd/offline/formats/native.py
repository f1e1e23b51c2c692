"""eplbd's own files: the npz of a trace, the recorded directory, the npz of a placement."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eplbd.errors import ConfigError
from eplbd.offline.formats.content import Content, Context, Mapped, trace_of
from eplbd.offline.windows import load
from eplbd.traces.archive import HeatTrace, load_trace, save_trace
from eplbd.traces.placements import load_placement, placement_meta, save_placement


def read_trace(path: Path, context: Context) -> Content:
    """A trace in one npz."""
    return load_trace(path)


def write_trace(path: Path, content: Content, context: Context) -> None:
    """A trace in one npz."""
    assert isinstance(content, HeatTrace)  # noqa: S101  # the registry asks by kind
    save_trace(path, content)


def read_recording(path: Path, context: Context) -> Content:
    """A recorded directory as steps; dummies, phases and placements stay behind."""
    recorded = load(path)
    topk = recorded.topk or context.needed_topk("recording", path)
    meta: dict[str, object] = {"rows": "steps", "window": recorded.says}
    if recorded.meta is not None and recorded.meta.layer_numbers:
        meta["layer_numbers"] = [*recorded.meta.layer_numbers]
    context.notes.append("phases, epochs and placements of the recording are not in a trace file")
    return trace_of("recording", path, recorded.rows, topk, meta)


def read_placement(path: Path, context: Context) -> Content:
    """A placement in one npz."""
    placement = load_placement(path)
    numbers = placement_meta(path).get("layer_numbers", ())
    if not isinstance(numbers, list | tuple) or not all(isinstance(n, int) for n in numbers):
        raise ConfigError(f"placement {path}: layer_numbers is {numbers!r}; expected integers")
    if numbers and len(numbers) != placement.layers:
        found = f"{len(numbers)} layer_numbers for {placement.layers} layers"
        raise ConfigError(f"placement {path}: {found}; expected one for each")
    return Mapped(placement, context.numbers(placement.layers, tuple(numbers)))


def write_placement(path: Path, content: Content, context: Context) -> None:
    """A placement in one npz."""
    assert isinstance(content, Mapped)  # noqa: S101  # the registry asks by kind
    numbers = context.numbers(content.placement.layers, content.layer_numbers)
    save_placement(path, content.placement, {"layer_numbers": [*numbers]})


def read_load(path: Path, context: Context) -> Content:
    """A load matrix `[layers, experts]` in an npy file: one window."""
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"load {path}: cannot be read ({error}); expected an npy file") from error
    return one_window("load", path, array, context)


def one_window(name: str, path: Path, array: object, context: Context) -> HeatTrace:
    """A trace of one window from what a planner takes, `[layers, experts]`; no time in it."""
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        shape = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
        raise ConfigError(f"{name} {path}: holds {shape}; expected numbers [layers, experts]")
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (np.floor(array) == array)
        if not whole.all():
            layer, expert = np.argwhere(~whole)[0].tolist()
            raise ConfigError(
                f"{name} {path}: layer {layer}, expert {expert} is {array[layer, expert]}; "
                "expected whole numbers of tokens"
            )
        array = array.astype(np.int64)
    context.notes.append(
        "one window without time: good for `plot`; `simulate` and `diagnose` need at least two"
    )
    topk = context.needed_topk(name, path)
    return trace_of(name, path, array[None], topk, {"window": "all that was counted"})
