"""The best placement of a small problem, by exhaustion: branch and bound over replicas and places.

Owns an answer to compare heuristics with; knows no policy. Seconds for a dozen slots, hopeless
beyond some twenty.
"""

from collections.abc import Iterator, Sequence


def optimum(loads: Sequence[float], ranks: int, slots: int) -> float:
    """The least load that the busiest rank can have.

    An expert's load is split evenly over its replicas, of which no rank holds two; every slot is
    used.
    """
    spare = ranks * slots - len(loads)
    mean = sum(loads) / ranks
    ways = sorted(
        (max(mean, *(load / n for load, n in zip(loads, counts, strict=True))), counts)
        for counts in _counts(len(loads), spare, ranks)
    )
    best = float("inf")
    for bound, counts in ways:
        if bound >= best:
            break
        items = sorted(
            (
                (load / n, expert)
                for expert, (load, n) in enumerate(zip(loads, counts, strict=True))
                for _ in range(n)
            ),
            reverse=True,
        )
        best = _pack(items, [(0.0, frozenset())] * ranks, slots, bound, best)
    return best


def _counts(experts: int, spare: int, most: int) -> Iterator[tuple[int, ...]]:
    """Every way to deal `spare` copies to the experts."""
    if experts == 0:
        if spare == 0:
            yield ()
        return
    for copies in range(min(spare, most - 1) + 1):
        for others in _counts(experts - 1, spare - copies, most):
            yield (1 + copies, *others)


def _pack(
    items: list[tuple[float, int]],
    held: list[tuple[float, frozenset[int]]],
    slots: int,
    bound: float,
    best: float,
) -> float:
    """The least maximum below `best`, or `best`. Largest item first, to every rank that differs."""
    if not items:
        return max(load for load, _ in held)
    (share, expert), *others = items
    tried: set[tuple[float, frozenset[int]]] = set()
    for rank, (load, experts) in enumerate(held):
        if len(experts) == slots or expert in experts or load + share >= best * (1 - 1e-9):
            continue
        if (load, experts) in tried:
            continue
        tried.add((load, experts))
        held[rank] = (load + share, experts | {expert})
        best = _pack(others, held, slots, bound, best)
        held[rank] = (load, experts)
        if best <= bound * (1 + 1e-9):
            break
    return best
