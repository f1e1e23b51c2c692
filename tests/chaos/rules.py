"""What a relay is told to do: strike at the nth message of a kind, or be a bad network.

A rule runs in the relay's thread. What is said of it here holds for messages that no earlier rule
had an opinion on.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eplbd.core import messages as m
from eplbd.core.rounds import Col
from tests.chaos.proxy import DROP, Passing

Match = Callable[[Passing], bool]


def says(kind: type[m.Message], **fields: object) -> Match:
    """Whether a message is of this kind and says that."""

    def matches(passing: Passing) -> bool:
        message = passing.message
        return isinstance(message, kind) and all(
            getattr(message, name) == value for name, value in fields.items()
        )

    return matches


@dataclass
class Exchanging:
    """Another match, in epochs in which rank 0 sends to a rank or receives from one.

    A rank that leaves its peers alone is not noticed where none of them was to hear from it.
    """

    matches: Match
    _alone: bool = True

    def __call__(self, passing: Passing) -> bool:
        message = passing.message
        if isinstance(message, m.Prepare) and passing.rank == 0:
            transfers = message.transfers
            self._alone = bool((transfers[:, Col.SRC] == transfers[:, Col.DST]).all())
        return not self._alone and self.matches(passing)


@dataclass
class Moment:
    """The `nth` matching message from a rank that was not counted yet, and what happens then.

    Of one epoch and attempt: when another one begins, counting begins anew. `act` runs before that
    message goes on, or after it has if `passes`. From then on until `over`, nothing goes on in
    either direction if `deaf`: what the daemon still has in its queues when it dies is lost, as it
    may be in any network.
    """

    matches: Match
    act: Callable[[], None]
    nth: int = 1
    passes: bool = False
    deaf: bool = True
    came: threading.Event = field(default_factory=threading.Event)
    over: bool = False
    message: m.Message | None = None
    _seen: set[int] = field(default_factory=set)
    _about: tuple[object, ...] = ()
    _due: bool = False

    def __call__(self, passing: Passing) -> Sequence[float] | None:
        if self.over:
            return None
        if self.came.is_set():
            return DROP if self.deaf else None
        # Due: the message before this one has been handed on.
        if self._due or self._completes(passing):
            return self._strike()
        return None

    def _completes(self, passing: Passing) -> bool:
        """Whether to strike before this message goes on."""
        if not self.matches(passing):
            return False
        self._count(passing)
        if len(self._seen) < self.nth:
            return False
        self.message = passing.message
        self._due = self.passes
        return not self.passes

    def _count(self, passing: Passing) -> None:
        message = passing.message
        names = ("term", "epoch", "attempt")
        about = tuple(getattr(message, name, None) for name in names)
        if about != self._about:
            self._about = about
            self._seen.clear()
        self._seen.add(passing.rank)

    def _strike(self) -> Sequence[float] | None:
        self.act()
        self.came.set()
        return DROP if self.deaf else None


@dataclass
class BadNetwork:
    """Loses, repeats, holds back and thereby reorders; seeded, up to `budget` messages.

    share: of the messages that are harmed.
    """

    seed: int
    budget: int
    share: float = 0.15
    harmed: Counter[str] = field(default_factory=Counter)
    by_way: Counter[bool] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def __call__(self, passing: Passing) -> Sequence[float] | None:
        chance = self._random
        if self.harmed.total() >= self.budget or chance.random() >= self.share:
            return None
        harm = chance.choice(("drop", "repeat", "delay", "delayed repeat"))
        self.harmed[harm] += 1
        self.by_way[passing.upward] += 1
        later_s = chance.uniform(0.01, 0.4)
        match harm:
            case "drop":
                return DROP
            case "repeat":
                return 0.0, 0.0
            case "delay":
                return (later_s,)
            case _:
                return 0.0, later_s
