"""The routing tables of vllm-ascend's second generation, kept true to the maps beside them.

Model runner V2 keeps vLLM's maps, but its routers read another table, made of them: row = token
modulo rows, column = expert. vllm-ascend makes it anew after each of its own rebalances; here it is
made on the host with the epoch's maps, brought to the device beside the forward, and put in force
by copies in the forward's own order, after the maps. Owns the table and nothing else of the layer.

Written from vllm-ascend's sources after release 0.23; no release that has it was at hand to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplbd.core.maps import derive_maps
from eplbd.core.messages import Prepare
from eplbd.core.placement import Placement
from eplbd.errors import TransferError
from eplbd.worker.stager import Engine
from eplbd_vllm.schedule import at_turns, rows_of_turns
from eplbd_vllm.torch_delivery import Delivery


class LayerState(Protocol):
    """`AscendEplbLayerState`. expert_replica_routing_table: `[rows, experts]` int32."""

    expert_replica_routing_table: Tensor | None


class RoutingTables:
    """The tables of a rank's layers, over `maps`, which writes vLLM's part of an epoch.

    width: entries of a row of turns. Raises TransferError where the engine's table in force is not
    the one that would be made of `placement` here: then the rule is another one.
    """

    def __init__(
        self,
        maps: Engine,
        layers: Sequence[LayerState],
        placement: Placement,
        *,
        rank: int,
        width: int,
    ) -> None:
        self._maps, self._rank, self._width = maps, rank, width
        self._tables = [_table(index, layer) for index, layer in enumerate(layers)]
        device = self._tables[0].device
        self._delivery = Delivery(device, "routing tables")
        self._new = torch.zeros(
            (len(layers), *self._tables[0].shape), dtype=torch.int32, device=device
        )
        derived = derive_maps(placement)
        rows = self._rows(derived.physical, derived.replica_count, None)
        for index, (table, expected) in enumerate(zip(self._tables, rows, strict=True)):
            if not np.array_equal(table.cpu().numpy(), expected):
                raise TransferError(
                    f"layer {index}: the engine's routing table is not made by the known rule of "
                    "(token + rank + expert) modulo replicas: upgrade eplbd-vllm"
                )

    def stage_maps(self, prepare: Prepare) -> Callable[[], None]:
        """See `Engine`."""
        write_maps = self._maps.stage_maps(prepare)
        changed: list[int] = prepare.layers.tolist()
        new = self._new[: len(changed)]
        rows = self._rows(prepare.physical, prepare.replica_count, prepare.parts)
        self._delivery.bring([(new, rows)])

        def write() -> None:
            write_maps()
            with torch.inference_mode():
                for row, layer in enumerate(changed):
                    self._tables[layer].copy_(new[row], non_blocking=True)
            self._delivery.read()

        return write

    def _rows(
        self,
        physical: NDArray[np.int32],
        replica_count: NDArray[np.int32],
        parts: NDArray[np.int32] | None,
    ) -> NDArray[np.int32]:
        rows, length = rows_of_turns(physical, replica_count, parts, self._width)
        return at_turns(rows, length, self._rank + np.arange(self._new.shape[1]))


def _table(index: int, layer: LayerState) -> Tensor:
    if layer.expert_replica_routing_table is None:
        raise TransferError(
            f"layer {index} has no routing table: was its state set by vllm-ascend?"
        )
    return layer.expert_replica_routing_table
