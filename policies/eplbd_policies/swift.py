"""Few moves, for slow links: the steps that relieve the hottest rank most per transfer.

After vllm-ascend's SwiftBalancer: redundant copies first, then exchanges, at most one expert
between any two ranks, nothing that was just received moves on. Without its faults: redundant slots
wander between ranks, every layer is measured by its own load, and a share of an expert is its load
over its replicas. Starts from the placement in force and stops when a layer is balanced, so that
little load that changed means few moves. Plans on the window's sum; deterministic; knows nodes. L,
E, R and K are the numbers of layers, experts, ranks and slots per rank.
"""

from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from eplbd import Budget, Heat, Placement, Register, Topology, hookimpl
from eplbd_policies.allowance import allowed, prefixes

Ids = NDArray[np.int64]
Load = NDArray[np.float64]
Flags = NDArray[np.bool_]

compiled = njit(cache=True, error_model="numpy")


class Layer(NamedTuple):
    """One layer while it is being balanced; a tuple that numba understands."""

    weight: Load
    """`[E]`, the window's heat, at a mean rank load of 1."""
    rows: Ids
    """`[R, K]`, the placement so far."""
    replicas: Ids
    """`[E]`, replicas in `rows`."""
    hosts: Flags
    """`[E, R]`, who holds what in `rows`."""
    origin: Flags
    """`[E, R]`, who held what at first, and so can send it."""
    load: Load
    """`[R]`."""
    frozen: Flags
    """`[R, K]`, slots that were filled: they stay."""
    busy: Flags
    """`[R, R]`, pairs between which an expert travels, symmetric."""
    received: Ids
    """`[R]`."""
    node: Ids
    """`[R]`."""


class Step(NamedTuple):
    """The best step that was found so far."""

    transfers: Ids
    """`[3, 4]`: rank, slot, expert, sender; -1 for a rank ends the list."""
    value: Load
    """`[1]`, relief per cost."""


class Spare(NamedTuple):
    """Redundant slots that may be refilled, `[n]` each."""

    rank: Ids
    slot: Ids
    others: Load
    """The hottest other holder of its expert once it is gone; the hottest rank left out."""


class Terms(NamedTuple):
    """What a step has to keep to."""

    enough: float
    """The peak up to which nothing is done, in mean rank loads."""
    floor: float
    """The least that the hottest rank touched has to fall, in mean rank loads."""
    network: float
    """A transfer between nodes counts as so many within one; infinite: there is none."""
    receives: int
    """The most experts that a rank receives."""


@compiled
def _recount(layer: Layer) -> None:
    """Derive everything that follows from `rows`."""
    layer.replicas[:] = 0
    layer.hosts[:] = False
    layer.load[:] = 0.0
    ranks, slots = layer.rows.shape
    for rank in range(ranks):
        for slot in range(slots):
            layer.replicas[layer.rows[rank, slot]] += 1
            layer.hosts[layer.rows[rank, slot], rank] = True
    for rank in range(ranks):
        for slot in range(slots):
            expert = layer.rows[rank, slot]
            layer.load[rank] += layer.weight[expert] / layer.replicas[expert]


@compiled
def _source(layer: Layer, terms: Terms, expert: int, rank: int) -> tuple[int, float]:
    """Who sends `expert` to `rank`, and at what cost; -1 where nobody may."""
    best, least = -1, np.inf
    for sender in range(layer.load.size):
        if layer.origin[expert, sender] and sender != rank and not layer.busy[sender, rank]:
            cost = 1.0 if layer.node[sender] == layer.node[rank] else terms.network
            if cost < least:
                best, least = sender, cost
    return best, least


@compiled
def _others(layer: Layer, gone: int, rank: int, hot: int, gained: int) -> float:
    """The hottest other holder of `gone`, `hot` left out, once `rank` has given up its replica.

    gained: an expert that gets one replica more at the same time; -1 for none.
    """
    weight, count = layer.weight, layer.replicas
    top = 0.0
    for other in range(layer.load.size):
        if layer.hosts[gone, other] and other not in (rank, hot):
            load = layer.load[other] + weight[gone] / (count[gone] * (count[gone] - 1))
            if gained >= 0 and layer.hosts[gained, other]:
                load -= weight[gained] / (count[gained] * (count[gained] + 1))
            top = max(top, load)
    return top


@compiled
def _spares(layer: Layer, terms: Terms, hot: int) -> Spare:
    """Find the redundant slots."""
    ranks, slots = layer.rows.shape
    spare = Spare(
        np.empty(ranks * slots, np.int64),
        np.empty(ranks * slots, np.int64),
        np.zeros(ranks * slots),
    )
    n = 0
    for rank in range(ranks):
        for slot in range(slots if layer.received[rank] < terms.receives else 0):
            expert = layer.rows[rank, slot]
            if layer.frozen[rank, slot] or layer.replicas[expert] < 2:
                continue
            spare.rank[n], spare.slot[n] = rank, slot
            spare.others[n] = _others(layer, expert, rank, hot, -1)
            n += 1
    return Spare(spare.rank[:n], spare.slot[:n], spare.others[:n])


@compiled
def _note(step: Step, which: int, rank: int, slot: int, expert: int, sender: int) -> None:
    """Write transfer `which` of a step, and that none follows."""
    row = step.transfers[which]
    row[0], row[1], row[2], row[3] = rank, slot, expert, sender
    step.transfers[which + 1, 0] = -1


@compiled
def _refill(layer: Layer, terms: Terms, hot: int, spare: Spare, n: int, step: Step) -> None:
    """Find a copy to put into redundant slot `n` in order to relieve `hot`.

    Either it is on another rank and gets a replica of what `hot` holds, or it is on `hot` and gets
    something lighter for what it held.
    """
    weight, count, load = layer.weight, layer.replicas, layer.load
    rank = spare.rank[n]
    gone = layer.rows[rank, spare.slot[n]]
    freed = load[rank] - weight[gone] / count[gone]
    lost = weight[gone] / (count[gone] - 1)  # what then hangs on one replica may surge
    burden = load[hot]
    if layer.hosts[gone, hot]:
        burden += weight[gone] / (count[gone] * (count[gone] - 1))
    for i in range(weight.size if rank == hot else layer.rows.shape[1]):
        expert = i if rank == hot else layer.rows[hot, i]
        if expert == gone or layer.hosts[expert, rank]:
            continue
        after = freed + weight[expert] / (count[expert] + 1)
        if rank != hot:
            after = max(after, burden - weight[expert] / (count[expert] * (count[expert] + 1)))
        if load[hot] - max(after, spare.others[n]) < terms.floor <= load[hot] - after:
            others = _others(layer, gone, rank, hot, expert)  # what they hold too may be relieved
        else:
            others = spare.others[n]
        cut = load[hot] - max(after, others)
        if cut >= terms.floor and cut > step.value[0]:
            sender, cost = _source(layer, terms, expert, rank)
            if cut / (cost + lost) > step.value[0]:
                step.value[0] = cut / (cost + lost)
                _note(step, 0, rank, spare.slot[n], expert, sender)


@compiled
def _exchange(layer: Layer, terms: Terms, hot: int, rank: int, step: Step) -> None:
    """Find an exchange of an expert of `hot` for one of `rank`."""
    weight, count, rows = layer.weight, layer.replicas, layer.rows
    cost = 2.0 if layer.node[rank] == layer.node[hot] else 2.0 * terms.network
    for i in range(rows.shape[1]):
        a = rows[hot, i]
        if layer.frozen[hot, i] or layer.hosts[a, rank]:
            continue
        for j in range(rows.shape[1]):
            b = rows[rank, j]
            less = weight[a] / count[a] - weight[b] / count[b]
            cut = min(less, layer.load[hot] - layer.load[rank] - less)
            if cut < terms.floor or cut / cost <= step.value[0]:
                continue
            if not layer.frozen[rank, j] and not layer.hosts[b, hot]:
                step.value[0] = cut / cost
                _note(step, 0, rank, j, a, hot)
                _note(step, 1, hot, i, b, rank)


@compiled
def _relay(
    layer: Layer, terms: Terms, hot: int, spare: Spare, at: tuple[int, int], step: Step
) -> None:
    """Find a slot on rank `at[1]` for a copy of what `hot` has in slot `at[0]`.

    The expert of that slot moves on to a redundant slot of a third rank, which is how redundant
    slots wander.
    """
    weight, count, load, rows = layer.weight, layer.replicas, layer.load, layer.rows
    expert, rank = rows[hot, at[0]], at[1]
    limit = load[hot] - max(terms.floor, 2.0 * step.value[0])  # what every rank has to keep to
    arrived = load[rank] + weight[expert] / (count[expert] + 1)
    relieved = load[hot] - weight[expert] / (count[expert] * (count[expert] + 1))
    if relieved > limit or load[rank] > limit:
        return
    sender, cost = _source(layer, terms, expert, rank)
    for n in range(spare.rank.size if sender >= 0 else 0):
        third = spare.rank[n]
        gone = rows[third, spare.slot[n]]
        if third in (rank, hot, sender) or layer.busy[rank, third] or gone == expert:
            continue
        others = max(relieved, spare.others[n])
        if others > limit or layer.hosts[gone, hot] or layer.hosts[gone, rank]:
            continue
        costs = cost + (1.0 if layer.node[third] == layer.node[rank] else terms.network)
        costs += weight[gone] / (count[gone] - 1)
        for slot in range(rows.shape[1]):
            moved = rows[rank, slot]
            part = weight[moved] / count[moved]
            left = load[third] - weight[gone] / count[gone] + part
            cut = load[hot] - max(others, arrived - part, left)
            if cut < terms.floor or cut / costs <= step.value[0]:
                continue
            if not layer.frozen[rank, slot] and not layer.hosts[moved, third]:
                step.value[0] = cut / costs
                _note(step, 0, rank, slot, expert, sender)
                _note(step, 1, third, spare.slot[n], moved, rank)


@compiled
def _best(layer: Layer, terms: Terms, step: Step) -> None:
    """Find the step that relieves the hottest rank most per cost."""
    ranks, slots = layer.rows.shape
    hot = 0
    for rank in range(ranks):
        if layer.load[rank] > layer.load[hot]:
            hot = rank
    spare = _spares(layer, terms, hot)
    for n in range(spare.rank.size):
        _refill(layer, terms, hot, spare, n, step)
    for rank in range(ranks):
        if layer.received[rank] >= terms.receives:
            continue
        if layer.received[hot] < terms.receives and not layer.busy[hot, rank] and rank != hot:
            _exchange(layer, terms, hot, rank, step)
        for slot in range(slots):
            if not layer.hosts[layer.rows[hot, slot], rank]:
                _relay(layer, terms, hot, spare, (slot, rank), step)


@compiled
def _take(layer: Layer, step: Step) -> int:
    """Make the step; -> its transfers."""
    which = 0
    while step.transfers[which, 0] >= 0:
        rank, slot, expert, sender = step.transfers[which]
        layer.rows[rank, slot] = expert
        layer.frozen[rank, slot] = True
        layer.busy[rank, sender] = layer.busy[sender, rank] = True
        layer.received[rank] += 1
        which += 1
    _recount(layer)
    return which


@compiled
def balance(weight: Load, current: Ids, node: Ids, terms: Terms, steps: int) -> tuple[Ids, Load]:
    """Balance one layer, `[R, K]`, in at most `steps` steps; -> `[R, K]` and the course of it.

    weight: `[E]`, sums to R. The course is `[2, n + 1]` for n steps: the peak after each, from none
    on, and the transfers until then.
    """
    (ranks, slots), experts = current.shape, weight.size
    layer = Layer(
        weight,
        current.copy(),
        np.zeros(experts, np.int64),
        np.zeros((experts, ranks), np.bool_),
        np.zeros((experts, ranks), np.bool_),
        np.zeros(ranks),
        np.zeros((ranks, slots), np.bool_),
        np.zeros((ranks, ranks), np.bool_),
        np.zeros(ranks, np.int64),
        node,
    )
    _recount(layer)
    for expert in range(experts):
        for rank in range(ranks):
            layer.origin[expert, rank] = layer.hosts[expert, rank]
    step = Step(np.full((3, 4), -1, np.int64), np.zeros(1))
    course = np.zeros((2, steps + 1))
    course[0, 0] = layer.load.max()
    taken = 0
    while taken < steps and course[0, taken] > terms.enough:
        step.value[0] = 0.0
        _best(layer, terms, step)
        if step.value[0] == 0.0:
            break
        course[1, taken + 1] = course[1, taken] + _take(layer, step)
        taken += 1
        course[0, taken] = layer.load.max()
    return layer.rows, course[:, : taken + 1].copy()


class Swift:
    """The few transfers that relieve the hottest ranks most, layer by layer."""

    name = "swift"
    eplbd_api = 1

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """threshold: PAR up to which a layer is left alone.

        min_gain: least fall of the ranks that a step touches, in mean rank loads of the layer.
        inter_node: whether experts travel between nodes; without, every node keeps its own.
        network: transfers within a node that one between nodes has to be worth. receives: most
        experts that a rank receives in a layer. steps: most steps per layer.
        """

        threshold: Annotated[float, msgspec.Meta(ge=1.0)] = 1.03
        min_gain: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.01
        inter_node: bool = True
        network: Annotated[float, msgspec.Meta(ge=1.0)] = 2.0
        receives: Annotated[int, msgspec.Meta(ge=1)] = 4
        steps: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100

    def __init__(self, options: Options) -> None:
        self._options = options
        self._terms = Terms(
            options.threshold,
            options.min_gain,
            options.network if options.inter_node else float("inf"),
            options.receives,
        )
        # Compiles, or loads what was compiled: the types and layouts of every later call.
        balance(np.array([2.0, 0.0]), np.array([[0], [1]]), np.zeros(2, np.int64), self._terms, 1)

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """The placement in force with a few changes, in the order of what they are worth."""
        total = heat.total
        mean = np.maximum(total.sum(1), 1) / current.ranks
        weight = total / mean[:, None]
        old = current.slots.astype(np.int64)
        node = np.asarray(topology.node_of)
        layers = range(current.layers)
        found = [balance(weight[i], old[i], node, self._terms, self._options.steps) for i in layers]
        courses = [course * np.array([[mean[i]], [1.0]]) for i, (_, course) in enumerate(found)]
        planned = old.copy()
        for i, steps in enumerate(prefixes(courses, allowed(budget))):
            rows = found[i][0]
            if steps < courses[i].shape[1] - 1:
                rows, _ = balance(weight[i], old[i], node, self._terms, steps)
            planned[i] = rows
        changed = np.flatnonzero((planned != old).any((1, 2)))
        return current.with_layers(changed, planned[changed]) if changed.size else current


@hookimpl
def eplbd_register_policies(register: Register) -> None:
    """Offer `swift`."""
    register(Swift)
