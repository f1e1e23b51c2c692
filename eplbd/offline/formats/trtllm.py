"""TensorRT-LLM's load balancer configuration and its recorded statistics.

Layers go by the model's own numbers (3..60 for DeepSeek-R1), ranks are equal consecutive blocks of
slots.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd.errors import ConfigError
from eplbd.offline.extras import extra
from eplbd.offline.formats.content import (
    Content,
    Context,
    Mapped,
    placement_of,
    read_text,
    trace_of,
)
from eplbd.traces.arrays import write_text

if TYPE_CHECKING:
    from yaml.nodes import Node as _Node

MAP, STATISTICS = "trtllm-map", "trtllm-stats"

_Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
_FILE = re.compile(r"rank(\d+)\.safetensors")
_KEY = re.compile(r"(\d+)_(\d+)")


class _Map(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    num_slots: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    initial_global_assignments: dict[_Natural, list[_Natural]]
    layer_updates_per_iter: _Natural = 0


class _MetaInfo(msgspec.Struct, frozen=True):
    num_experts: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    num_experts_per_token: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


def read_map(path: Path, context: Context) -> Content:
    """The placement of a load balancer's YAML. Raises ConfigError with line or place."""
    document = _yaml(path)
    try:
        found = msgspec.convert(document, _Map)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{MAP} {path}: {error}") from error
    layers = found.initial_global_assignments
    if not layers:
        raise ConfigError(f"{MAP} {path}: initial_global_assignments is empty")
    ranks = context.needed_ranks(MAP, path, found.num_slots)
    for number, slots in layers.items():
        if len(slots) != found.num_slots:
            raise ConfigError(
                f"{MAP} {path}: layer {number} has {len(slots)} slots; "
                f"expected num_slots, {found.num_slots}"
            )
    numbers = tuple(sorted(layers))
    width = found.num_slots // ranks
    rows = [
        [layers[number][rank * width : (rank + 1) * width] for rank in range(ranks)]
        for number in numbers
    ]
    return Mapped(placement_of(MAP, path, rows), context.numbers(len(rows), numbers))


def write_map(path: Path, content: Content, context: Context) -> None:
    """A load balancer's YAML that starts from this placement and stays there."""
    assert isinstance(content, Mapped)  # noqa: S101  # the registry asks by kind
    placement = content.placement
    numbers = context.numbers(placement.layers, content.layer_numbers)
    lines = [f"num_slots: {placement.ranks * placement.slots_per_rank}"]
    lines.append("initial_global_assignments:")
    for number, slots in zip(numbers, placement.slots.reshape(placement.layers, -1), strict=True):
        lines.append(f"  {number}: [{', '.join(map(str, slots.tolist()))}]")
    lines.append("layer_updates_per_iter: 0")
    if numbers[0] == 0:
        context.notes.append(
            "layers are numbered from 0; TensorRT-LLM counts dense layers too: where the model has "
            "some in front, give --first-layer"
        )
    write_text(path, "\n".join(lines) + "\n")


def read_statistics(path: Path, context: Context) -> Content:
    """Recorded statistics: a directory with `meta_info.json` and `rank<r>.safetensors`."""
    try:
        info = msgspec.json.decode(read_text(STATISTICS, path / "meta_info.json"), type=_MetaInfo)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{STATISTICS} {path / 'meta_info.json'}: {error}") from error
    files = sorted(one for one in path.iterdir() if _FILE.fullmatch(one.name))
    if not files:
        raise ConfigError(f"{STATISTICS} {path}: holds no rank<r>.safetensors")
    total: dict[tuple[int, int], NDArray[np.int64]] = {}
    keys: set[tuple[int, int]] | None = None
    for one in files:
        own = _rank(one, info.num_experts)
        if keys is not None and own.keys() != keys:
            differ = min(own.keys() ^ keys)
            raise ConfigError(
                f"{STATISTICS} {one}: iteration {differ[0]} of layer {differ[1]} is not in all "
                f"ranks' files; expected the same keys as in {files[0].name}"
            )
        keys = set(own)
        for key, counts in own.items():
            total[key] = total[key] + counts if key in total else counts
    return _stacked(path, total, info, context)


def _stacked(
    path: Path, total: dict[tuple[int, int], NDArray[np.int64]], info: _MetaInfo, context: Context
) -> Content:
    iterations = sorted({iteration for iteration, _ in total})
    layers = sorted({layer for _, layer in total})
    if not total or iterations[-1] - iterations[0] + 1 != len(iterations):
        raise ConfigError(f"{STATISTICS} {path}: iterations {iterations[:9]}; expected no gap")
    missing = [(i, la) for i in iterations for la in layers if (i, la) not in total]
    if missing:
        raise ConfigError(
            f"{STATISTICS} {path}: iteration {missing[0][0]} lacks layer {missing[0][1]}"
        )
    heat = np.stack([np.stack([total[i, la] for la in layers]) for i in iterations])
    meta: dict[str, object] = {
        "window": "one iteration of TensorRT-LLM",
        "rows": "steps",
        "layer_numbers": layers,
    }
    topk = context.topk or info.num_experts_per_token
    return trace_of(STATISTICS, path, heat, topk, meta)


def _rank(path: Path, experts: int) -> dict[tuple[int, int], NDArray[np.int64]]:
    damaged = extra("safetensors", "TensorRT-LLM's statistics").SafetensorError
    safetensors = extra("safetensors.numpy", "TensorRT-LLM's statistics")
    try:
        tensors: dict[str, NDArray[np.integer]] = safetensors.load(path.read_bytes())
    except (OSError, damaged, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{STATISTICS} {path}: cannot be read ({error})") from error
    found = {}
    for key, counts in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ConfigError(f"{STATISTICS} {path}: key {key!r}; expected <iteration>_<layer>")
        if counts.dtype.kind not in "iu" or counts.shape != (experts,) or (counts < 0).any():
            raise ConfigError(
                f"{STATISTICS} {path}: {key} is {counts.dtype} {list(counts.shape)}; "
                f"expected counts [{experts}], none negative"
            )
        found[int(match[1]), int(match[2])] = counts.astype(np.int64)
    return found


def _yaml(path: Path) -> object:
    yaml = extra("yaml", "TensorRT-LLM's YAML")
    text = read_text(MAP, path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse_repeats(path, yaml.compose(text, Loader=loader))
        document: object = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{MAP} {path}: not YAML: {error}") from error
    return document


def _refuse_repeats(path: Path, node: _Node | None) -> None:
    """A layer that is given twice: YAML would keep the last without a word."""
    if node is None or node.tag != "tag:yaml.org,2002:map":
        return
    seen = set()
    for key, value in node.value:
        if key.value in seen:
            line = key.start_mark.line + 1
            raise ConfigError(f"{MAP} {path}:{line}: {key.value} is given a second time")
        seen.add(key.value)
        _refuse_repeats(path, value)
