"""What a heat report must be before anybody believes it, and how those of one node become one.

Owns the judgement of form: a report that passes can be booked. Whether what it says fits the other
ranks' reports is the ledger's business. Must not know placements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from eplbd.core.cluster import NodeHeat
from eplbd.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from eplbd.core.messages import HeatReport

PHASE_BITS = {"prefill": 1, "decode": 2, "mixed": 3, "all": 3}
"""What a report's phase may be; a step has the bits of all its ranks."""

LAG_STEPS = 128
"""Forwards by which ranks may be apart in their reports: eight blocks of sixteen, as agents
send; and most steps of one report."""

INT32_MAX = int(np.iinfo(np.int32).max)

LIMIT = 1 << 53
"""Forwards, epochs and routed assignments above this are noise; centuries of them are below."""

_NARROW = tuple((np.iinfo(kind).max, np.dtype(kind)) for kind in (np.uint8, np.uint16))


def of_rank(rank: int, report: HeatReport) -> NodeHeat:
    """One rank's report as that of a node which has no other; no array is copied."""
    return NodeHeat(
        epoch=report.epoch,
        first_forward=report.first_forward,
        phase=report.phase,
        ranks=np.array([rank], dtype=np.int32),
        counts=report.counts[None],
        routed=report.routed[None],
        tokens=report.tokens[None],
        dummy=report.dummy[None],
    )


def of_node(reports: Mapping[int, HeatReport]) -> NodeHeat:
    """Reports by rank, which agree in epoch, phase and forwards and were checked, as one."""
    ranks = sorted(reports)
    told = [reports[rank] for rank in ranks]
    most = max(int(report.counts.max(initial=0)) for report in told)
    kind = next((dtype for limit, dtype in _NARROW if most <= limit), np.dtype(np.int32))
    counts = np.stack([report.counts.astype(kind, copy=False) for report in told])
    return NodeHeat(
        epoch=told[0].epoch,
        first_forward=told[0].first_forward,
        phase=told[0].phase,
        ranks=np.array(ranks, dtype=np.int32),
        counts=counts,
        routed=np.stack([report.routed for report in told]),
        tokens=np.stack([report.tokens for report in told]),
        dummy=np.stack([report.dummy for report in told]),
    )


def check(
    heat: NodeHeat, *, ranks: int, layers: int, columns: int, most_steps: int = LAG_STEPS
) -> None:
    """Raise RemoteProtocolError, naming ranks and field, unless the report is well formed.

    columns: slots that each rank counts. most_steps: of one report.
    """
    _check_ranks(heat, ranks)
    if heat.phase not in PHASE_BITS:
        raise refusal(heat, "phase", f"is {heat.phase!r}, expected {[*PHASE_BITS]}")
    for name, number in (("first_forward", heat.first_forward), ("epoch", heat.epoch)):
        if not 0 <= number < LIMIT:
            raise refusal(heat, name, f"is {number}, expected 0 to 2**53")
    steps = heat.counts.shape[1] if heat.counts.ndim > 1 else 0
    if not 1 <= steps <= most_steps:
        raise refusal(heat, "counts", f"has {steps} steps, expected 1..{most_steps}")
    _check_integers(heat, "counts", heat.counts, (steps, layers, columns))
    _check_integers(heat, "tokens", heat.tokens, (steps,))
    _check_integers(heat, "routed", heat.routed, (steps,), most=LIMIT)
    if heat.dummy.shape != (len(heat.ranks), steps) or heat.dummy.dtype != np.bool_:
        found = f"is {heat.dummy.dtype} {heat.dummy.shape[1:]}"
        raise refusal(heat, "dummy", f"{found}, expected bool {(steps,)}")


def _check_ranks(heat: NodeHeat, ranks: int) -> None:
    told = heat.ranks
    if told.ndim != 1 or not told.size or told.dtype != np.int32:
        raise refusal(heat, "ranks", f"is {told.dtype} {told.shape}, expected some int32")
    if told[0] < 0 or told[-1] >= ranks or (told[1:] <= told[:-1]).any():
        raise refusal(heat, "ranks", f"expected 0..{ranks - 1}, ascending")


def _check_integers(
    heat: NodeHeat,
    field: str,
    array: NDArray[np.generic],
    shape: tuple[int, ...],
    most: int = INT32_MAX,
) -> None:
    """Whether each rank has `shape` integers from 0 to `most`."""
    if array.shape != (len(heat.ranks), *shape):
        raise refusal(heat, field, f"has shape {array.shape[1:]}, expected {shape}")
    if array.dtype.kind not in "iu":
        raise refusal(heat, field, f"has dtype {array.dtype}, expected an integer dtype")
    # What the type rules out is not looked for: counts are nearly all of a node's heat, and narrow.
    if array.dtype.kind == "i" and array.min() < 0:
        raise refusal(heat, field, f"has a negative value, {array.min()}")
    if greatest(array.dtype) > most and array.max() > most:
        raise refusal(heat, field, f"has a value of {array.max()}, expected at most {most}")


def greatest(kind: np.dtype[Any]) -> int:
    """The greatest value of an integer type."""
    return (1 << 8 * kind.itemsize - (kind.kind == "i")) - 1


def refusal(heat: NodeHeat, field: str, wrong: str) -> RemoteProtocolError:
    """The error of whoever sent this report."""
    ranks = heat.ranks.ravel().tolist()
    whose = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[:64]}"
    return RemoteProtocolError(f"heat report of {whose}: {field} {wrong}")
