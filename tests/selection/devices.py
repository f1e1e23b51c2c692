"""Calls of the selection on the devices that this machine has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from eplbd_vllm.selection import map_and_record
from tests.selection.reference import Case

Select = Callable[..., Tensor]


def device_named(name: str) -> torch.device:
    """The device, or a skip that names it."""
    if name == "cpu":
        return torch.device(name)
    part = getattr(torch, name, None)
    if part is None or not part.is_available():
        pytest.skip(f"no {name} device here")
    return torch.device(name)


@dataclass(frozen=True, slots=True)
class Call:
    """A case on a device. The counter and the tables keep their places between calls."""

    ids: Tensor
    load: Tensor
    physical: Tensor
    count: Tensor
    record: Tensor | None
    unpadded: Tensor | None
    turn: Tensor | None
    first_token: int
    offset: int

    @classmethod
    def of(
        cls, case: Case, device: torch.device, *, dtype: torch.dtype = torch.int64, room: int = 1
    ) -> Call:
        """room: entries behind the longest row, which name no slot."""

        def tensor(value: object, kind: torch.dtype = dtype) -> Tensor | None:
            return None if value is None else torch.tensor(value, dtype=kind, device=device)

        topk = len(case.ids[0]) if case.ids else 2
        ids = torch.tensor(case.ids, dtype=dtype, device=device).reshape(-1, topk)
        width = max(map(len, case.rows)) + room
        rows = [row + [-1] * (width - len(row)) for row in case.rows]
        return cls(
            ids=ids,
            load=torch.zeros(case.slots, dtype=torch.int32, device=device),
            physical=torch.tensor(rows, dtype=dtype, device=device),
            count=torch.tensor([len(row) for row in case.rows], dtype=dtype, device=device),
            record=tensor(case.record, torch.bool),
            unpadded=tensor(case.unpadded, torch.int32),
            turn=tensor(case.turn),
            first_token=case.first_token,
            offset=case.offset,
        )

    def run(self, select: Select = map_and_record) -> Tensor:
        """Call `select`, adding to `load`."""
        return select(
            self.ids,
            self.load,
            self.physical,
            self.count,
            self.record,
            self.unpadded,
            first_token=self.first_token,
            offset=self.offset,
            turn=self.turn,
        )
