"""Recorded lives of a group, as inputs to begin with and as moments to begin at.

Owns where a life is cut. Must not know who lives it, nor what is said.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from tests.fuzz.dialogue import MOUTHS, Said, read, write

NEXT = 12
"""Messages of an input to begin with."""

Life = list[Said]


class Listener(Protocol):
    """Whatever hears a dialogue."""

    def hear(self, said: Said) -> None:
        """Take one message."""
        ...


L = TypeVar("L", bound=Listener)


def moments(life: Life, new: Callable[[], L]) -> list[L]:
    """How a listener stands in the course of a life, one moment for every mouth."""
    listener, taken = new(), list[L]()
    places = _places(life)
    for place, said in enumerate(life):
        if place in places:
            taken.append(copy.deepcopy(listener))
        listener.hear(said)
    return [*taken, listener]


def begun(dialogue: Sequence[Said], at: Callable[[], Sequence[L]], new: Callable[[], L]) -> L:
    """The listener with which a dialogue begins.

    One whose first message is empty begins in the midst of a life: its mouth says when.
    """
    if dialogue and not dialogue[0].frames:
        return copy.deepcopy(at()[dialogue[0].mouth])
    return new()


def held(data: bytes, at: Callable[[], Sequence[L]], new: Callable[[], L]) -> tuple[L, int]:
    """The listener that has heard the dialogue of an input, and how many frames that took."""
    dialogue = read(data)
    listener = begun(dialogue, at, new)
    for said in dialogue:
        listener.hear(said)
    return listener, sum(max(1, len(said.frames)) for said in dialogue)


def phrases(lives: Sequence[Life]) -> list[Said]:
    """Messages of these lives, with few of a kind."""
    found = {(said.mouth, said.frames[0][:24]): said for life in lives for said in life}
    return list(found.values())


def seeds(lives: Sequence[Life]) -> list[bytes]:
    """What comes next at every moment of the first, and the beginnings of all."""
    first = lives[0]
    later = [
        [Said(mouth, ()), *first[place : place + NEXT]]
        for mouth, place in enumerate(_places(first))
    ]
    return [write(dialogue) for dialogue in (*later, *(life[: 2 * NEXT] for life in lives))]


def _places(life: Life) -> list[int]:
    return [place * len(life) // (MOUTHS - 1) for place in range(MOUTHS - 1)]
