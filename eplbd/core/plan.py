"""From the placement in force to the wanted one, in epochs that are each safe to stop after.

Owns the alignment of slots, the difference as moves, and the order in which epochs take them. It
must not know which moves belong together (that is `chains`), how many fit into an epoch (`basket`),
who sends (`sources`), when (`rounds`), nor messages or deadlines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplbd.core.basket import Basket, Room
from eplbd.core.chains import Chain, chains
from eplbd.core.placement import Placement, validate
from eplbd.core.rounds import Col, Transfers, colour
from eplbd.core.shares import Parts, as_shares, even_parts
from eplbd.core.sources import assign_sources
from eplbd.core.topology import Link, Topology
from eplbd.errors import LocalProtocolError, PlacementError


def align(current: Placement, target: Placement) -> Placement:
    """Permute `target` inside each rank so that kept experts keep the slot they have in `current`.

    Never changes which experts a rank hosts, nor how often, nor the share of any of its slots. The
    number of slots that differ from `current` is the least possible. Raises PlacementError where
    the two are not of one shape.
    """
    _check_shapes(current, target)
    rows = current.layers * current.ranks
    old = current.slots.reshape(rows, -1)
    new = target.slots.reshape(rows, -1)
    _, kept, used = np.intersect1d(
        _keys(old, current.experts),
        _keys(new, current.experts),
        assume_unique=True,
        return_indices=True,
    )
    # Both lists of what is left run row by row, with equal counts in each row.
    aligned = old.ravel().copy()
    freed = np.ones(aligned.size, dtype=np.bool_)
    gained = freed.copy()
    freed[kept] = False
    gained[used] = False
    aligned[freed] = new.ravel()[gained]
    slots = aligned.reshape(current.slots.shape)
    slots.setflags(write=False)
    if target.shares is None:
        return Placement(slots, current.experts)
    given = target.shares.ravel()
    shares = np.empty_like(given)
    shares[kept], shares[freed] = given[used], given[gained]
    return Placement(slots, current.experts, shares.reshape(slots.shape))


def _keys(rows: NDArray[np.int32], experts: int) -> NDArray[np.int64]:
    """Flat keys, unique over everything: row, expert and how often it came before in the row."""
    order = np.argsort(rows, axis=1, kind="stable")
    held = np.take_along_axis(rows, order, axis=1)
    place = np.arange(rows.shape[1])
    first = np.where(np.diff(held, axis=1, prepend=-1) != 0, place, 0)
    again = np.empty_like(order)
    np.put_along_axis(again, order, place - np.maximum.accumulate(first, axis=1), axis=1)
    row = np.arange(rows.shape[0], dtype=np.int64)[:, None]
    keys: NDArray[np.int64] = ((row * experts + rows) * rows.shape[1] + again).ravel()
    return keys


@dataclass(frozen=True, slots=True, eq=False)
class EpochPlan:
    """One transaction: from the placement with `base_digest` to `target`.

    layers: `[n]` int32, changed layers, ascending. transfers: `[m, 9]` int32, columns `Col`, in the
    order in which every rank issues its own; none where only shares change. rounds: number of
    rounds. Arrays are read-only.
    """

    base_digest: str
    target: Placement
    layers: NDArray[np.int32]
    transfers: Transfers
    rounds: int

    @property
    def moves(self) -> int:
        """Slots written, local copies included."""
        return len(self.transfers)

    def bytes(self, expert_bytes: int) -> int:
        """Bytes that cross ranks, `expert_bytes` per expert."""
        crossing = self.transfers[:, Col.SRC] != self.transfers[:, Col.DST]
        return int(np.count_nonzero(crossing)) * expert_bytes

    def by_link(self, topology: Topology) -> tuple[int, ...]:
        """Moves by how far they come, one figure per `Link` in its order."""
        crossed = topology.link_matrix()[self.transfers[:, Col.SRC], self.transfers[:, Col.DST]]
        return tuple(np.bincount(crossed, minlength=len(Link)).tolist())

    def for_rank(self, rank: int) -> Transfers:
        """The rows that `rank` sends or receives, in order; read-only."""
        mine = (self.transfers[:, Col.SRC] == rank) | (self.transfers[:, Col.DST] == rank)
        rows: Transfers = self.transfers[mine]
        rows.setflags(write=False)
        return rows


class Plan:
    """The way from one placement to another. Deterministic: equal arguments give equal epochs.

    current, target: of one shape, every expert placed (PlacementError otherwise); what is reached
    is `target` up to the order of slots within a rank. layer_heat: `[layers]`, higher goes first,
    for example the busiest rank's load minus the mean; None for layer order. Every placement on the
    way places every expert, and a rank holds an expert twice only where `current` or `target` does.

    Shares: layers that get nothing but new shares come first, in one epoch without transfers. Any
    other layer gets the target's with its last epoch; until then an expert whose replicas are
    where they were keeps its shares, and every other one is split evenly over what there is.

    spared: ranks that can be spared at both ends, and on the way: every expert is on some other
    rank, and where there are shares, those of the spared ranks are nothing.
    """

    def __init__(
        self,
        current: Placement,
        target: Placement,
        topology: Topology,
        layer_heat: NDArray[np.generic] | None = None,
        spared: Collection[int] = (),
    ) -> None:
        _check_shapes(current, target)
        current, target = (
            validate(
                placement.slots,
                experts=current.experts,
                topology=topology,
                layers=current.layers,
                allow_duplicates=True,
                shares=placement.shares,
            )
            for placement in (current, target)
        )
        heat = np.zeros(current.layers) if layer_heat is None else np.asarray(layer_heat)
        if heat.shape != (current.layers,):
            raise LocalProtocolError(
                f"plan: layer_heat has shape {heat.shape}, expected ({current.layers},)"
            )
        self._topology = topology
        self._spared = spared
        self._base = current
        self._current = current
        self._target = target
        self._aligned = align(current, target)
        changed = current.slots != self._aligned.slots
        self.moves = int(np.count_nonzero(changed))
        """Slots that the whole plan writes."""
        self._receives = changed.sum(axis=(0, 2))
        """Moves that each rank has yet to receive, `[ranks]`."""
        order = np.argsort(-heat.astype(np.float64), kind="stable")
        self._order: list[int] = order[changed.any(axis=(1, 2))[order]].tolist()
        self._pending: dict[int, list[Chain]] = {}
        self._offered: tuple[Basket, Placement] | None = None
        self._weighted = current.shares is not None or target.shares is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to do: neither moves nor new shares."""
        return not self.remaining and not self._share_layers().size

    @property
    def remaining(self) -> int:
        """Moves that no settled epoch has made."""
        return int(self._receives.sum())

    @property
    def least_rounds(self) -> int:
        """Rounds that the rest takes at the very least: the moves that one rank still receives."""
        return int(self._receives.max())

    @property
    def base(self) -> Placement:
        """The placement that the next epoch starts from."""
        return self._base

    def next_epoch(
        self,
        experts_per_rank: int = 2,
        max_moves: int | None = None,
        crossings: int | None = None,
    ) -> EpochPlan | None:
        """Cut the next epoch, hottest layers first; None when the target is reached.

        experts_per_rank: most experts that a rank receives, which is its number of staging buffers;
        any number from 1 serves. max_moves: most moves over all ranks. crossings: most experts that
        enter a node, and most that leave it, over the network in a round; in the epoch as many for
        each expert of a rank. Only a ring, moves that must commit together, may exceed what is
        meant for the epoch, and then the epoch is that ring alone, with at most one move per rank.
        Changes nothing: until `settled`, asking again with equal arguments gives an equal epoch.
        """
        if min(experts_per_rank, *(n for n in (max_moves, crossings, 1) if n is not None)) < 1:
            raise LocalProtocolError(
                f"plan: an epoch of {experts_per_rank} experts per rank, {max_moves} moves and "
                f"{crossings} crossings makes no progress; give at least 1 of each"
            )
        basket = Basket(self._topology, Room(experts_per_rank, max_moves, crossings))
        layers = self._share_layers()
        if not layers.size:
            if not self.remaining:
                return None
            self._fill(basket)
            layers = np.unique(np.array([layer for layer, _ in basket.writes], dtype=np.int32))
        target, transfers = self._transfers(basket, layers, crossings)
        self._offered = (basket, target)
        layers.setflags(write=False)
        rounds = int(transfers[-1, Col.ROUND]) + 1 if len(transfers) else 0
        return EpochPlan(self._base.digest, target, layers, transfers, rounds)

    def settled(self) -> None:
        """Advance past the epoch last given out, which every rank has committed."""
        if self._offered is None:
            raise LocalProtocolError("plan: settled() without an epoch; call next_epoch() first")
        basket, self._base = self._offered
        for chain, units in basket.taken:
            del chain[:units]
        for _, (rank, _, _) in basket.writes:
            self._receives[rank] -= 1
        self._offered = None

    def _layers(self) -> Iterator[tuple[int, list[Chain]]]:
        """Layers with moves left, hottest first; cut into chains when first looked at."""
        for layer in self._order:
            if layer not in self._pending:
                old, new = self._current.slots[layer], self._aligned.slots[layer]
                self._pending[layer] = chains(old, new, self._spared)
            self._pending[layer] = left = [chain for chain in self._pending[layer] if chain]
            if left:
                yield layer, left

    def _share_layers(self) -> NDArray[np.int32]:
        """Layers that hold what they shall, under other shares than they shall, ascending."""
        if not self._weighted:
            return np.empty(0, dtype=np.int32)
        goal = align(self._base, self._target)
        due = (self._base.parts() != goal.parts()).any(axis=(1, 2))
        due &= (self._base.slots == goal.slots).all(axis=(1, 2))
        return np.flatnonzero(due).astype(np.int32)

    def _fill(self, basket: Basket) -> None:
        for layer, pending in self._layers():
            basket.open(layer, self._base.slots[layer])
            for chain in pending:
                basket.offer(chain)
            if basket.is_full:
                break
        if not basket.writes:
            layer, pending = next(self._layers())
            basket.open(layer, self._base.slots[layer])
            basket.force(pending[0])

    def _transfers(
        self, basket: Basket, layers: NDArray[np.int32], crossings: int | None
    ) -> tuple[Placement, Transfers]:
        """The epoch's target, which differs in `layers`, and its transfers."""
        slots = self._base.slots.copy()
        table = np.full((len(basket.writes), len(Col)), -1, dtype=np.int32)
        used = [0] * self._topology.ranks
        for row, (layer, (rank, slot, expert)) in enumerate(sorted(basket.writes)):
            slots[layer, rank, slot] = expert
            table[row, Col.LAYER] = layer
            table[row, Col.EXPERT] = expert
            table[row, Col.DST :] = (rank, slot, used[rank])
            used[rank] += 1
        slots.setflags(write=False)
        transfers = colour(
            assign_sources(table, self._base, self._topology),
            node_of=self._topology.node_of,
            crossings=crossings,
        )
        if not self._weighted:
            return Placement(slots, self._base.experts), transfers
        rows = slots[layers]
        return self._base.with_layers(layers, rows, self._parts(layers, rows)), transfers

    def _parts(self, layers: NDArray[np.int32], rows: NDArray[np.int32]) -> Parts:
        """Parts of `layers` (`[n]`) on the way, when they hold `rows` (`[n, ranks, slots]`)."""
        experts = self._base.experts
        before = self._current.slots[layers]
        moved = np.zeros((layers.size, experts), dtype=np.bool_)
        layer, rank, slot = np.nonzero(rows != before)
        for held in (rows, before):
            moved[layer, held[layer, rank, slot]] = True
        parts = self._current.parts()[layers]
        index = np.arange(layers.size)[:, None, None]
        parts = np.where(moved[index, rows], self._even(rows), parts)
        # Moves may have brought experts of a rank into another order than the target's.
        wanted = self._target.slots[layers], experts, as_shares(self._target.parts()[layers])
        goal = align(Placement(rows, experts), Placement(*wanted))
        done = (rows == goal.slots).all(axis=(1, 2), keepdims=True)
        return np.where(done, goal.parts(), parts)

    def _even(self, rows: NDArray[np.int32]) -> Parts:
        """Parts of an even split over the ranks that are not spared."""
        parts = np.zeros_like(rows)
        used = [rank for rank in range(rows.shape[1]) if rank not in self._spared]
        parts[:, used] = even_parts(rows[:, used], self._base.experts)
        return parts


def _check_shapes(current: Placement, target: Placement) -> None:
    ours = (*current.slots.shape, current.experts)
    theirs = (*target.slots.shape, target.experts)
    if ours != theirs:
        raise PlacementError(
            f"plan: target has (layers, ranks, slots_per_rank, experts) {theirs}, expected {ours} "
            "as in the current placement"
        )
