"""One rank's routing of vllm-ascend V1: `log2phy` of each layer, rewritten in place.

Owns the choice of a replica for this rank, and the way of an epoch's maps into the tensors that the
layers read: laid out on the host, brought to the device beside the forward, put in force by copies
in the forward's own order. Addresses never change: a captured graph goes on reading them. It must
not know why a map changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplbd.core.maps import derive_maps
from eplbd.core.messages import Prepare
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd_vllm.ascend.engine import Adaptor, Layer
from eplbd_vllm.torch_delivery import Delivery


class Maps:
    """The maps of a rank's layers. tp_size: of the engine, for its rule of choosing replicas."""

    def __init__(self, adaptor: Adaptor, *, tp_size: int) -> None:
        self._layers = adaptor.moe_layers
        self._rank, self._tp_size = self._layers[0].ep_rank, tp_size
        self.placement = placement_of(adaptor)
        self.wrote: Callable[[Placement], None] = lambda _: None
        """Hears, on the forward thread, of each placement that came into force."""
        tables = [_tables(index, layer) for index, layer in enumerate(self._layers)]
        self._log2phy = [log2phy for log2phy, _ in tables]
        self._held = [held for _, held in tables]
        device = self._log2phy[0].device
        self._delivery = Delivery(device, "maps")
        shape = (self.placement.layers, self.placement.experts)
        self._new = torch.zeros(shape, dtype=self._log2phy[0].dtype, device=device)

    def stage_maps(self, prepare: Prepare) -> Callable[[], None]:
        """See `Engine`."""
        target = self.placement.with_layers(prepare.layers, prepare.slots)
        return self._stage(prepare.layers, prepare.physical, prepare.replica_count, target)

    def reset(self, placement: Placement) -> None:
        """Put the maps of `placement` in force, all layers; between forwards, on their thread."""
        maps = derive_maps(placement)
        layers = np.arange(placement.layers)
        self._stage(layers, maps.physical, maps.replica_count, placement)()

    def _stage(
        self,
        layers: NDArray[np.integer],
        physical: NDArray[np.int32],
        replica_count: NDArray[np.int32],
        target: Placement,
    ) -> Callable[[], None]:
        changed: list[int] = layers.tolist()
        new = self._new[: len(changed)]
        rows = choose(physical, replica_count, self._rank, self._tp_size)
        self._delivery.bring([(new, rows)])
        held = torch.from_numpy(expert_maps(target.slots[layers], target.experts)).unbind()

        def write() -> None:
            # What an engine made under inference mode may only be written to under it.
            with torch.inference_mode():
                for row, layer in enumerate(changed):
                    self._log2phy[layer].copy_(new[row], non_blocking=True)
                    self._held[layer].copy_(held[row])
            self._delivery.read()
            self.placement = target
            self.wrote(target)

        return write


def choose(
    physical: NDArray[np.int32], replica_count: NDArray[np.int32], rank: int, tp_size: int
) -> NDArray[np.int32]:
    """`[n, experts]` int32, the slot that a rank sends each expert's tokens to.

    physical: `[n, experts, max_replicas]` slots in the order of ranks. The rule is vllm-ascend's
    own: ranks take turns over the replicas, and with tensor parallelism experts do as well, because
    the last ranks of a TP group get the padding and would otherwise heat the same replicas
    (vllm-ascend pull request 9239).
    """
    experts = np.arange(physical.shape[1])
    first = (
        rank % tp_size + rank // tp_size + experts if tp_size > 1 else np.full_like(experts, rank)
    )
    index = first % replica_count
    return np.ascontiguousarray(np.take_along_axis(physical, index[:, :, None], axis=2)[:, :, 0])


def expert_maps(slots: NDArray[np.int32], experts: int) -> NDArray[np.int32]:
    """`[n, ranks, experts]` int32 local slots, -1 where there is none, of `[n, ranks, slots]`."""
    n, ranks, per_rank = slots.shape
    maps = np.full((n, ranks, experts), -1, dtype=np.int32)
    local = np.broadcast_to(np.arange(per_rank, dtype=np.int32), slots.shape)
    np.put_along_axis(maps, slots.astype(np.intp), local, axis=2)
    return maps


def placement_of(adaptor: Adaptor) -> Placement:
    """Return what the engine's slots hold, from its maps.

    Raises ConfigError where a slot holds nothing that the maps know of.
    """
    maps = adaptor.get_global_expert_map().cpu().numpy()
    layers, ranks, experts = maps.shape
    per_rank = int(maps.max()) + 1
    slots = np.full((layers, ranks, per_rank), -1, dtype=np.int32)
    layer, rank, expert = np.nonzero(maps >= 0)
    slots[layer, rank, maps[layer, rank, expert]] = expert
    if (slots < 0).any():
        where = tuple(int(i) for i in np.argwhere(slots < 0)[0])
        raise ConfigError(
            f"layer {where[0]}, rank {where[1]}, slot {where[2]} holds an expert a second time, "
            "which vllm-ascend's maps cannot say; choose num_redundant_experts so that no rank "
            "gets an expert twice, or none"
        )
    return Placement(slots, experts)


def _tables(index: int, layer: Layer) -> tuple[Tensor, Tensor]:
    if layer.log2phy is None or layer.global_expert_map is None:
        raise ConfigError(
            f"layer {index} routes without log2phy: start the engine with dynamic_eplb and expert "
            "parallelism"
        )
    return layer.log2phy, layer.global_expert_map
