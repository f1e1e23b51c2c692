"""vllm-ascend's expert map: `expert_map_path` and `expert_map_record_path`.

`layer_id` counts MoE layers from 0, `device_id` is the EP rank, the place in `device_expert` is the
local slot. vllm-ascend takes no expert twice on a device, so neither does this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.offline.formats.content import Content, Context, Mapped, placement_of, read_text
from eplbd.traces.arrays import write_text

NAME = "ascend-map"

_Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class _Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device_id: _Natural
    device_expert: list[_Natural]


class _Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    layer_id: _Natural
    device_count: _Natural
    device_list: list[_Device]


class _Map(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    moe_layer_count: _Natural
    layer_list: list[_Layer]


def read(path: Path, context: Context) -> Content:
    """The placement of an expert map. Raises ConfigError with its place, `$.layer_list[3]`."""
    try:
        found = msgspec.json.decode(read_text(NAME, path), type=_Map)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{NAME} {path}: {error}") from error
    if found.moe_layer_count != len(found.layer_list):
        raise ConfigError(
            f"{NAME} {path}: moe_layer_count is {found.moe_layer_count}, layer_list has "
            f"{len(found.layer_list)}; expected the same number"
        )
    _check_ids(path, "layer_list", [layer.layer_id for layer in found.layer_list])
    rows: list[list[list[int]]] = []
    for layer in sorted(found.layer_list, key=lambda one: one.layer_id):
        where = f"layer_id {layer.layer_id}: device_list"
        if layer.device_count != len(layer.device_list):
            raise ConfigError(
                f"{NAME} {path}: {where} has {len(layer.device_list)} devices; expected "
                f"device_count, {layer.device_count}"
            )
        _check_ids(path, where, [device.device_id for device in layer.device_list])
        devices = sorted(layer.device_list, key=lambda one: one.device_id)
        rows.append([device.device_expert for device in devices])
    placement = placement_of(NAME, path, rows)
    _refuse_duplicates(path, placement)
    return Mapped(placement, context.numbers(placement.layers))


def write(path: Path, content: Content, context: Context) -> None:
    """An expert map of the placement. Raises ConfigError where vllm-ascend would refuse it."""
    assert isinstance(content, Mapped)  # noqa: S101  # the registry asks by kind
    placement = content.placement
    _refuse_duplicates(path, placement)
    layers = [
        {
            "layer_id": layer,
            "device_count": placement.ranks,
            "device_list": [
                {"device_id": rank, "device_expert": held} for rank, held in enumerate(devices)
            ],
        }
        for layer, devices in enumerate(placement.slots.tolist())
    ]
    document = {"moe_layer_count": placement.layers, "layer_list": layers}
    write_text(path, json.dumps(document, indent=1) + "\n")


def _check_ids(path: Path, where: str, ids: list[int]) -> None:
    if sorted(ids) != [*range(len(ids))]:
        raise ConfigError(
            f"{NAME} {path}: {where} has the ids {ids}; expected 0..{len(ids) - 1}, each once"
        )


def _refuse_duplicates(path: Path, placement: Placement) -> None:
    ordered = np.sort(placement.slots, axis=2)
    twice = ordered[:, :, 1:] == ordered[:, :, :-1]
    if twice.any():
        layer, rank, place = np.argwhere(twice)[0].tolist()
        raise ConfigError(
            f"{NAME} {path}: layer {layer}, device {rank} holds expert "
            f"{ordered[layer, rank, place]} twice; vllm-ascend takes each at most once per device"
        )
