"""SGLang's expert distribution dumps and its `--init-expert-location`.

Counts cover all of the model's layers, those without experts as zeros; they are dropped, and the
numbers of the others kept. Token ids and positions are never kept.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.offline.formats.content import Content, Context, Mapped, trace_of
from eplbd.offline.formats.torch_files import read_pt, write_pt
from eplbd.traces.archive import HeatTrace
from eplbd.traces.arrays import write_text

STAT, PASSES, LOCATION = "sglang-stat", "sglang-pass", "sglang-map"

Counts = NDArray[np.integer]
_KEYS = ("forward_pass_id", "rank", "global_physical_count")


def read_stat(path: Path, context: Context) -> Content:
    """A dump of recorder mode `stat`: `logical_count` `[steps, layers, experts]`, rank 0's."""
    found = read_pt(STAT, path)
    counts = found.get("logical_count") if isinstance(found, Mapping) else None
    if not isinstance(counts, np.ndarray) or counts.dtype.kind not in "iu" or counts.ndim != 3:
        raise ConfigError(
            f"{STAT} {path}: logical_count is {_named(counts)}; "
            "expected an integer tensor [steps, layers, experts]"
        )
    used = np.asarray(counts.any(axis=(1, 2)))
    if not used.all():
        context.notes.append(
            f"{int((~used).sum())} of {len(used)} rows are empty and were left out; the rest is in "
            "the order of SGLang's ring buffer, which is not that of time once it has wrapped"
        )
    counts = counts[used]
    kept, counts = _moe_layers(STAT, path, counts, context)
    topk = context.needed_topk(STAT, path)
    meta: dict[str, object] = {
        "window": "one forward of SGLang",
        "rows": "steps",
        "layer_numbers": kept,
    }
    return trace_of(STAT, path, counts, topk, meta)


def write_stat(path: Path, content: Content, context: Context) -> None:
    """A dump as recorder mode `stat` writes it, for every layer of the model."""
    assert isinstance(content, HeatTrace)  # noqa: S101  # the registry asks by kind
    numbers = _trace_numbers(content, context)
    counts = np.zeros((content.windows, numbers[-1] + 1, content.experts), dtype=np.int64)
    counts[:, list(numbers)] = content.heat
    if int(counts.max()) <= np.iinfo(np.int32).max:
        counts = counts.astype(np.int32)
    context.notes.append("labels, topk and provenance have no place in an SGLang dump")
    write_pt(
        path,
        {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None},
    )


def read_passes(path: Path, context: Context) -> Content:
    """Dumps of recorder mode `per_pass` or `per_token`: one file, or a directory of all ranks'."""
    paths = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if not paths:
        raise ConfigError(f"{PASSES} {path}: holds no .pt file; expected one per rank")
    passes: defaultdict[int, dict[int, Counts]] = defaultdict(dict)
    table: Counts | None = None
    for one in paths:
        found = read_pt(PASSES, one)
        own = _table(one, found)
        if table is not None and not np.array_equal(table, own):
            raise ConfigError(
                f"{PASSES} {one}: its last_physical_to_logical_map differs from {paths[0]}'s; "
                "expected dumps of one moment"
            )
        table = own
        _gather(one, found, own, passes)
    assert table is not None  # noqa: S101  # there is a file
    return _as_trace(path, passes, table, context)


def write_location(path: Path, content: Content, context: Context) -> None:
    """What `--init-expert-location` reads: `.json`, or `.pt` with a tensor.

    Layers without experts get the linear layout, which SGLang never looks at.
    """
    assert isinstance(content, Mapped)  # noqa: S101  # the registry asks by kind
    placement = content.placement
    numbers = context.numbers(placement.layers, content.layer_numbers)
    layers = numbers[-1] + 1
    linear = Placement.linear(layers, placement.experts, placement.ranks, placement.slots_per_rank)
    table = linear.slots.reshape(layers, -1).astype(np.int64)
    table[list(numbers)] = placement.slots.reshape(placement.layers, -1)
    if path.suffix == ".pt":
        write_pt(path, {"physical_to_logical_map": table})
    else:
        write_text(path, json.dumps({"physical_to_logical_map": table.tolist()}) + "\n")


def _table(path: Path, found: object) -> Counts:
    table = found.get("last_physical_to_logical_map") if isinstance(found, Mapping) else None
    if not isinstance(table, np.ndarray) or table.dtype.kind not in "iu" or table.ndim != 2:
        raise ConfigError(
            f"{PASSES} {path}: last_physical_to_logical_map is {_named(table)}; "
            "expected an integer tensor [layers, slots]"
        )
    if table.size == 0 or int(table.min()) < 0 or int(table.max()) >= table.shape[1]:
        raise ConfigError(
            f"{PASSES} {path}: last_physical_to_logical_map names experts outside "
            f"0..{table.shape[1] - 1}"
        )
    return table


def _gather(
    path: Path, found: object, table: Counts, passes: defaultdict[int, dict[int, Counts]]
) -> None:
    """Add a file's counts to `passes`, by pass and rank."""
    records = found.get("records") if isinstance(found, Mapping) else None
    if not isinstance(records, list):
        raise ConfigError(f"{PASSES} {path}: records is {_named(records)}; expected a list")
    for number, record in enumerate(records):
        values = [record.get(key) if isinstance(record, Mapping) else None for key in _KEYS]
        forward, rank, counts = values
        if not isinstance(forward, int) or not isinstance(rank, int):
            raise ConfigError(
                f"{PASSES} {path}: record {number} is of pass {forward!r}, rank {rank!r}; "
                "expected integers"
            )
        if (
            not isinstance(counts, np.ndarray)
            or counts.dtype.kind not in "iu"
            or counts.shape != table.shape
        ):
            raise ConfigError(
                f"{PASSES} {path}: record {number}: global_physical_count is {_named(counts)}; "
                f"expected an integer tensor {list(table.shape)}"
            )
        if counts.min() < 0:
            raise ConfigError(f"{PASSES} {path}: record {number} counts {counts.min()}")
        # One pass in two halves has two records of a rank, told apart by gatherer_key.
        before = passes[forward].get(rank)
        wide = counts.astype(np.int64)
        passes[forward][rank] = wide if before is None else before.astype(np.int64) + wide


def _as_trace(
    path: Path, passes: dict[int, dict[int, Counts]], table: Counts, context: Context
) -> Content:
    ranks = {rank for by_rank in passes.values() for rank in by_rank}
    whole = [number for number in sorted(passes) if set(passes[number]) == ranks]
    if len(whole) < len(passes):
        context.notes.append(
            f"{len(passes) - len(whole)} of {len(passes)} passes are not in the dumps of all "
            f"{len(ranks)} ranks and were left out"
        )
    if not whole:
        raise ConfigError(f"{PASSES} {path}: has no pass that every rank recorded")
    physical = np.stack(
        [np.sum([passes[number][rank] for rank in ranks], axis=0) for number in whole]
    )
    experts = int(table.max()) + 1
    logical = np.zeros((len(whole), len(table), experts), dtype=np.int64)
    for layer, held in enumerate(table.tolist()):
        for slot, expert in enumerate(held):
            logical[:, layer, expert] += physical[:, layer, slot]
    context.notes.append(
        "slots were read as experts by the dump's last map: counts from before a rebalance during "
        "the recording are attributed wrongly, and the dump does not tell"
    )
    kept, logical_kept = _moe_layers(PASSES, path, logical, context)
    meta: dict[str, object] = {
        "window": "one forward pass of SGLang",
        "rows": "steps",
        "layer_numbers": kept,
    }
    return trace_of(PASSES, path, logical_kept, context.needed_topk(PASSES, path), meta)


def _moe_layers(
    name: str, path: Path, counts: Counts, context: Context
) -> tuple[list[int], Counts]:
    used = counts.any(axis=(0, 2))
    if not used.any():
        raise ConfigError(f"{name} {path}: counts nothing; expected at least one token")
    dropped = np.flatnonzero(~used).tolist()
    if dropped:
        context.notes.append(f"layers {dropped} count nothing and were left out as dense")
    return np.flatnonzero(used).tolist(), counts[:, used]


def _trace_numbers(trace: HeatTrace, context: Context) -> tuple[int, ...]:
    own = trace.meta.get("layer_numbers")
    numbers = tuple(n for n in own if isinstance(n, int)) if isinstance(own, list) else ()
    return context.numbers(trace.layers, numbers if len(numbers) == trace.layers else ())


def _named(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "missing" if value is None else f"a {type(value).__name__}"
