"""The latency guard: it says when moves slow down, and when they need not any more."""

from __future__ import annotations

from eplbd.core.bubble import Pacer
from eplbd.core.events import Note
from eplbd.core.group import Group
from eplbd.core.guard import Guard
from eplbd.core.settings import Settings
from tests.sim.world import World

FORWARD_S = 0.02


class Engine:
    """A guard, and forwards that take `inflation` times as long while an epoch stages."""

    def __init__(self) -> None:
        self.pacer = Pacer(ceiling=1.05)
        self.guard = Guard(self.pacer)
        self.group = Group(World(seed=1).ranks[0].hello(0), Settings(), stored_term=0, now=0.0)

    def epoch(self, inflation: float) -> list[Note]:
        """Stage one; what is said before the next."""
        self.guard.pace(self.group)
        self.group.out.clear()
        self.pacer.observe(forward_s=FORWARD_S, staging_forward_s=FORWARD_S * inflation)
        self.guard.pace(self.group)
        return [note for note in self.group.out if isinstance(note, Note)]


def test_nothing_is_said_while_all_is_well() -> None:
    engine = Engine()
    assert not any(engine.epoch(1.02) for _ in range(20))


def test_each_time_moves_become_slower_is_said_with_its_figures() -> None:
    engine = Engine()
    (note,) = engine.epoch(1.2)
    assert (note.level, note.event) == ("warning", "moves slowed down")
    assert note.fields["group"] == "sim"
    assert note.fields["inflation"] == 1.2
    assert note.fields["ceiling"] == 1.05
    assert note.fields["stride"] == engine.pacer.current.stride
    assert engine.guard.slowed
    (again,) = engine.epoch(1.2)
    assert again.fields["stride"] == 2 * engine.pacer.current.stride // 2


def test_at_the_slowest_it_is_an_alarm_and_no_more_lines() -> None:
    engine = Engine()
    said = [engine.epoch(1.2) for _ in range(12)]
    assert sum(map(len, said)) == 4, "from a round in 4 forwards to one in 64"
    assert not said[-1]
    assert engine.pacer.helpless


def test_that_it_is_over_is_said_once() -> None:
    engine = Engine()
    engine.epoch(1.2)
    (note,) = engine.epoch(1.0)
    assert (note.level, note.event) == ("info", "moves within the latency ceiling again")
    assert engine.epoch(1.0) == []
