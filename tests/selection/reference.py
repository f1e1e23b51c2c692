"""What selection promises, in plain Python, and the rules that it is measured against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KNUTH = 2654435769
WORD = 1 << 32


@dataclass(frozen=True, slots=True)
class Case:
    """One call, as lists. Every slot belongs to one expert."""

    ids: list[list[int]]
    rows: list[list[int]]
    """Slots of each expert, in the order of their turns; of any lengths from 1."""
    slots: int
    record: bool | None = None
    unpadded: int | list[int] | None = None
    first_token: int = 0
    offset: int = 0
    turn: int | None = None

    @property
    def valid(self) -> list[bool]:
        """Whether each row is a token."""
        n = len(self.ids)
        match self.unpadded:
            case None:
                return [True] * n
            case int(count):
                return [row + self.first_token < count for row in range(n)]
            case counts:
                block = n // len(counts)
                return [row + self.first_token < count for count in counts for row in range(block)]


def chosen(case: Case) -> tuple[list[list[int]], list[int]]:
    """Slots of every choice, and how often each slot is recorded."""
    valid, known = case.valid, range(len(case.rows))
    counted = [
        expert
        for ids, is_token in zip(case.ids, valid, strict=True)
        for expert in ids
        if is_token and expert in known
    ]
    turn = sum(counted) if case.turn is None else case.turn
    came: Counter[int] = Counter()
    load, result = [0] * case.slots, []
    for row, (ids, is_token) in enumerate(zip(case.ids, valid, strict=True)):
        result.append([-1] * len(ids))
        for k, expert in enumerate(ids):
            if expert not in known:
                continue
            came[expert] += is_token
            place = came[expert] if is_token else row
            slots = case.rows[expert]
            slot = slots[(place + expert + turn + case.offset) % len(slots)]
            result[-1][k] = slot
            load[slot] += is_token and case.record is not False
    return result, load


def by_modulo(tokens: NDArray[np.int64], replicas: NDArray[np.int64]) -> NDArray[np.int64]:
    """The replica by a token's position alone."""
    return tokens % replicas


def by_knuth(tokens: NDArray[np.int64], replicas: NDArray[np.int64]) -> NDArray[np.int64]:
    """The replica by a hash of a token's position (vLLM since its pull request 40810)."""
    return tokens * KNUTH % WORD % replicas
