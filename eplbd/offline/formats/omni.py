"""OmniPlacement's `.npy`: a 0/1 array `[device, layer, expert]`.

It knows which device holds an expert, not in which slot, and not that a device holds one twice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eplbd.errors import ConfigError
from eplbd.offline.formats.content import Content, Context, Mapped
from eplbd.traces.placements import checked
from eplbd.wholefile import replacing

NAME = "omni-map"


def read(path: Path, context: Context) -> Content:
    """The placement; slots are filled in the order of experts."""
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"{NAME} {path}: cannot be read ({error}); expected an npy file"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or 0 in array.shape:
        shape = list(array.shape) if isinstance(array, np.ndarray) else "several arrays"
        raise ConfigError(f"{NAME} {path}: holds {shape}; expected [device, layer, expert]")
    if array.dtype.kind not in "iufb" or not ((array == 0) | (array == 1)).all():
        raise ConfigError(f"{NAME} {path}: holds {array.dtype} values beside 0 and 1")
    held = array.astype(np.bool_)
    counts = held.sum(2)
    per_rank = int(counts[0, 0])
    uneven = counts != per_rank
    if uneven.any() or not per_rank:
        device, layer = np.argwhere(uneven)[0].tolist() if uneven.any() else (0, 0)
        raise ConfigError(
            f"{NAME} {path}: device {device} holds {counts[device, layer]} experts of layer "
            f"{layer}, device 0 {per_rank} of layer 0; expected equally many everywhere "
            "(redundancy that differs by layer cannot be expressed as slots per rank)"
        )
    devices, layers, experts = held.shape
    slots = np.nonzero(held)[2].reshape(devices, layers, per_rank).transpose(1, 0, 2)
    context.notes.append("the file does not tell the order of slots; they follow the experts' ids")
    placement = checked(NAME, path, np.ascontiguousarray(slots), experts)
    return Mapped(placement, context.numbers(layers))


def write(path: Path, content: Content, context: Context) -> None:
    """The 0/1 array; which slot holds an expert is lost, and a second copy on a device with it."""
    assert isinstance(content, Mapped)  # noqa: S101  # the registry asks by kind
    hosts = content.placement.hosts()
    lost = content.placement.slots.size - int(hosts.sum())
    context.notes.append("LOSSY: the order of slots is not in this format")
    if lost:
        context.notes.append(
            f"LOSSY: {lost} slots hold an expert that their device has already; they are gone, and "
            "devices now hold unequal numbers"
        )
    with replacing(path) as file:
        np.save(file, hosts.transpose(1, 0, 2).astype(np.int8))
