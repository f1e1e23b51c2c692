"""How evenly the replicas of an expert are used, beside the rules that go by a token's position.

The figure is max / mean over the replicas of one expert, of the tokens of one forward on all ranks
or of a window of forwards. 1.00 is the least that whole tokens allow only where they divide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from eplbd_vllm.selection import map_and_record  # noqa: E402
from tests.selection.reference import by_knuth, by_modulo  # noqa: E402

pytestmark = pytest.mark.slow

EXPERTS, HOT, TOPK, RANKS = 16, 5, 2, 8
REPLICAS = (2, 3, 5, 8)

Ids = NDArray[np.int64]
Hits = NDArray[np.bool_]
"""`[forwards, ranks, tokens]`: which tokens choose the hot expert."""


def one_forward(tokens: int, where: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> Hits:
    return where(np.arange(tokens))[None, None]


def by_chance(seed: int, shape: tuple[int, int, int], share: float) -> Hits:
    return np.random.default_rng(seed).random(shape) < share


POSITIONS: dict[str, Hits] = {
    "every token": one_forward(512, lambda t: t >= 0),
    "every 2nd token": one_forward(512, lambda t: t % 2 == 0),
    "every 3rd token": one_forward(512, lambda t: t % 3 == 0),
    "every 4th token": one_forward(512, lambda t: t % 4 == 1),
    "every 8th token": one_forward(512, lambda t: t % 8 == 7),
    "every 13th token": one_forward(512, lambda t: t % 13 == 0),
    "sorted batch, one run": one_forward(512, lambda t: (t >= 70) & (t < 170)),
    "shares padded at the end": one_forward(512, lambda t: t % 64 < 11),
    "a quarter, by chance": by_chance(0, (1, 1, 512), 0.25),
    "11 slots of a decode batch": one_forward(64, lambda t: (t >= 20) & (t < 31)),
}
"""One forward of one rank."""
FORWARDS: dict[str, Hits] = {
    "8 ranks decode 1 token": by_chance(1, (100, RANKS, 1), 0.5),
    "8 ranks decode 4 tokens": by_chance(2, (100, RANKS, 4), 0.5),
    "8 ranks decode 16 tokens": by_chance(3, (60, RANKS, 16), 0.3),
    "8 ranks decode 64 tokens": by_chance(4, (30, RANKS, 64), 0.2),
    "8 ranks prefill 512 tokens": by_chance(5, (6, RANKS, 512), 0.1),
}
"""Many forwards of ranks that have their own tokens each."""


def routing(hits: Hits) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Forward, rank and ids `[tokens, topk]`: the hot expert where it is hit, others by chance."""
    chance = np.random.default_rng(9)
    forwards, ranks, tokens = hits.shape
    others = np.delete(np.arange(EXPERTS), HOT)
    for forward, rank in np.ndindex(forwards, ranks):
        ids = chance.permuted(np.tile(others, (tokens, 1)), axis=1)[:, :TOPK]
        ids[:, 0] = np.where(hits[forward, rank], HOT, ids[:, 0])
        yield forward, rank, ids


def selected(hits: Hits, replicas: int, *, turns: bool) -> NDArray[np.int64]:
    """`[forwards, replicas]`: tokens of the hot expert, dealt by `map_and_record`."""
    load = torch.zeros(len(hits), EXPERTS * replicas, dtype=torch.int64)
    physical = torch.arange(EXPERTS * replicas).view(EXPERTS, replicas)
    count = torch.full((EXPERTS,), replicas)
    for forward, rank, ids in routing(hits):
        turn = torch.tensor(forward) if turns else None
        map_and_record(
            torch.from_numpy(ids), load[forward], physical, count, offset=rank, turn=turn
        )
    hot: NDArray[np.int64] = load[:, HOT * replicas : (HOT + 1) * replicas].numpy()
    return hot


def by_position(hits: Hits, replicas: int, rule: Callable[[Ids, Ids], Ids]) -> NDArray[np.int64]:
    """`[forwards, replicas]`: the same tokens, dealt by a rule of their positions."""
    replica = rule(np.arange(hits.shape[2]), np.array(replicas))
    each = replica == np.arange(replicas)[:, None]
    load: NDArray[np.int64] = (hits.sum(axis=1)[:, None] * each).sum(axis=2)
    return load


def unevenness(load: NDArray[np.int64]) -> tuple[float, float]:
    """Max / mean over replicas: the mean over forwards with tokens, and that of the window."""
    busy = load[load.sum(axis=1) > 0]
    window = load.sum(axis=0)
    return float((busy.max(1) / busy.mean(1)).mean()), float(window.max() / window.mean())


def compared(hits: Hits, replicas: int) -> dict[str, tuple[float, float]]:
    loads = {
        "modulo": by_position(hits, replicas, by_modulo),
        "knuth": by_position(hits, replicas, by_knuth),
        "selection": selected(hits, replicas, turns=False),
        "with turns": selected(hits, replicas, turns=True),
    }
    return {name: unevenness(load) for name, load in loads.items()}


@pytest.mark.parametrize("name", POSITIONS)
def test_one_forward_is_as_even_as_whole_tokens_allow(name: str) -> None:
    hits = POSITIONS[name]
    tokens = int(hits.sum())
    print(f"\n{name}, {tokens} tokens: max / mean over replicas")
    for replicas in REPLICAS:
        figures = {rule: forward for rule, (forward, _) in compared(hits, replicas).items()}
        print(f"  {replicas} replicas  " + "  ".join(f"{r} {f:.3f}" for r, f in figures.items()))
        least = -(-tokens // replicas) * replicas / tokens
        assert figures["selection"] == figures["with turns"] == pytest.approx(least)
        assert least <= min(figures["modulo"], figures["knuth"]) + 1e-12


@pytest.mark.parametrize("name", FORWARDS)
def test_ranks_and_windows_are_no_less_even_than_by_position(name: str) -> None:
    print(f"\n{name}: max / mean over replicas of a forward, of the window")
    for replicas in REPLICAS:
        figures = compared(FORWARDS[name], replicas)
        print(
            f"  {replicas} replicas  "
            + "  ".join(f"{r} {f:.3f}, {w:.3f}" for r, (f, w) in figures.items())
        )
        for rule in ("selection", "with turns"):
            assert figures[rule][0] <= min(figures["modulo"][0], figures["knuth"][0])
            # A window of few tokens ends in the middle of a turn.
            assert figures[rule][1] <= max(1.1, min(figures["modulo"][1], figures["knuth"][1]))
