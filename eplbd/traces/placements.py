"""A placement in one npz file: `slots`, `experts`, `digest`, `meta`, and `shares` if uneven.

Owns that format, in both directions. Must not know the formats of engines (those are converted from
and to it) nor whether the placement is in force anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplbd.core.placement import Placement, validate
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, PlacementError
from eplbd.traces.arrays import Arrays, fault, read_arrays, write_arrays

_ARRAYS = ("slots", "experts", "digest", "meta")


def save_placement(
    path: Path, placement: Placement, meta: Mapping[str, object] | None = None
) -> None:
    """Write a placement so that it is there whole or not at all. Raises OSError."""
    arrays: Arrays = {
        "slots": placement.slots,
        "experts": np.array(placement.experts, dtype=np.int64),
        "digest": np.array(placement.digest),
        "meta": np.array(json.dumps(dict(meta or {}))),
    }
    if placement.shares is not None:
        arrays["shares"] = placement.shares
    write_arrays(path, arrays)


def load_placement(path: Path) -> Placement:
    """Read a placement that can be served, or raise ConfigError naming file, place and reason.

    A rank may hold an expert twice here: some engines start that way.
    """
    arrays = read_arrays("placement", path, _ARRAYS, optional=("shares",))
    experts, digest, slots = arrays["experts"], arrays["digest"], arrays["slots"]
    if experts.dtype.kind not in "iu" or experts.shape != () or int(experts) < 1:
        raise fault("placement", path, f"experts is {experts.tolist()!r}", "one number from 1")
    if slots.ndim != 3 or 0 in slots.shape:
        found = f"slots is {slots.dtype} {list(slots.shape)}"
        raise fault("placement", path, found, "integers [layers, ranks, slots_per_rank]")
    placement = checked("placement", path, slots, int(experts), arrays.get("shares"))
    if digest.dtype.kind != "U" or str(digest) != placement.digest:
        found = f"digest is {digest.tolist()!r}"
        raise fault("placement", path, found, f"that of its contents, {placement.digest}")
    return placement


def placement_meta(path: Path) -> Mapping[str, object]:
    """What was noted beside a placement, or ConfigError naming the file."""
    meta = read_arrays("placement", path, ("meta",))["meta"]
    try:
        decoded: object = json.loads(str(meta))
    except ValueError as error:
        raise fault("placement", path, f"meta is not JSON ({error})", "a JSON object") from error
    if not isinstance(decoded, dict):
        raise fault("placement", path, "meta is no JSON object", "a JSON object")
    return decoded


def checked(
    kind: str,
    path: Path,
    slots: NDArray[np.generic],
    experts: int,
    shares: NDArray[np.generic] | None = None,
) -> Placement:
    """The placement in a file's `slots` `[layers, ranks, slots_per_rank]`, none of them 0.

    Raises ConfigError naming the file and the place.
    """
    layers, ranks, per_rank = slots.shape
    topology = Topology.single_node(ranks, per_rank)
    try:
        return validate(
            slots,
            experts=experts,
            topology=topology,
            layers=layers,
            allow_duplicates=True,
            shares=shares,
        )
    except PlacementError as error:
        raise ConfigError(f"{kind} {path}: {error}") from error
