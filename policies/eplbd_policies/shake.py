"""Out of a local optimum where layers are small: disturb the placement, repair it, keep the better.

Owns iterated local search (Lourenço, Martin and Stützle, 2003), compiled, with its own random
numbers so that every machine draws the same. Letters as in `board`.
"""

import numpy as np
from numpy.typing import NDArray

from eplbd_policies.board import Board, Ints, compiled, copy, lay, swap
from eplbd_policies.search import Terms, effort, peak, repair

LARGEST = 64
"""Slots of a layer beyond which a search stands too seldom in a bad optimum to pay for this."""
WORK = 2000
"""Attempts times slots of a layer."""
BLOWS = 2
"""Random steps per attempt: fewer are undone by the repair, more are a fresh start."""
MULTIPLIER, INCREMENT = np.uint64(6364136223846793005), np.uint64(1442695040888963407)


@compiled
def draw(seed: NDArray[np.uint64], below: int) -> int:
    """A number in 0..below-1; Knuth's linear congruential generator (MMIX)."""
    seed[0] = seed[0] * MULTIPLIER + INCREMENT
    return int((seed[0] >> np.uint64(33)) % np.uint64(below))


@compiled
def strike(board: Board, seed: NDArray[np.uint64]) -> None:
    """Take one random step that leaves a placement: an exchange or a copy."""
    ranks, per_rank = board.slots.shape
    rank, slot = draw(seed, ranks), draw(seed, per_rank)
    held = board.slots[rank, slot]
    if board.copies[held] > 1 and draw(seed, 2):
        expert = draw(seed, board.copies.shape[0])
        if not board.hosts[rank, expert]:
            copy(board, rank, expert, slot)
        return
    other, its = draw(seed, ranks), draw(seed, per_rank)
    theirs = board.slots[other, its]
    if not board.hosts[other, held] and not board.hosts[rank, theirs]:
        swap(board, rank, other, slot, its)


@compiled
def shake(of: Board, terms: Terms, room: int, slots: Ints) -> bool:
    """Improve `slots` `[R, S]` in place; whether it did. No layer of more than `LARGEST` is tried.

    of: of the same layer, whatever it holds.
    """
    if slots.size > LARGEST or slots.shape[0] < 2:
        return False
    seed = np.array([1], np.uint64)
    board = lay(of.heat, of.weight, of.risk, slots.copy(), of.price, of.head)
    moves = repair(board, terms, room, np.zeros(1, np.int64))
    best, better = peak(board, of.risk) + terms.cost * moves, False
    for _ in range(WORK // slots.size):
        board = lay(of.heat, of.weight, of.risk, slots.copy(), of.price, of.head)
        for _ in range(BLOWS):
            strike(board, seed)
        moves = repair(board, terms, room, np.array([slots.size * effort(slots, of.weight.size)]))
        found = peak(board, of.risk) + terms.cost * moves
        if found < best and moves <= room:
            best, better = found, True
            slots[:] = board.slots
    return better
