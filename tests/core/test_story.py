"""The story of an aborted epoch: readable, in order, bounded, and in the epoch's one line."""

from __future__ import annotations

from eplbd.core import messages as m
from eplbd.core.events import EpochEnded
from eplbd.core.messages import Gate, Standing, Verdict
from eplbd.core.story import LINES_MAX, tell
from tests.sim.world import World


def test_what_several_ranks_say_is_one_line() -> None:
    said = m.Prepared(1, 7)
    notes: list[tuple[float, object]] = [(5.0, "prepare")]
    notes += [(5.0 + rank / 1000, (rank, said)) for rank in (0, 1, 2, 5)]
    notes += [(5.25, "stage"), (5.5, (3, "lost"))]
    assert tell(notes) == (
        "+0.000 s prepare",
        "+0.000 s ranks 0-2, 5: prepared",
        "+0.250 s stage",
        "+0.500 s rank 3: lost",
    )


def test_reasons_and_verdicts_are_told() -> None:
    notes: list[tuple[float, object]] = [
        (0.0, (4, m.Nack(1, 7, "no room for buffers"))),
        (0.0, (4, m.Late(1, 7, 2, 310))),
        (0.0, (0, m.Decided(1, 7, Gate.FLIP, 2, Verdict.ABORT))),
        (0.0, (0, m.Undecided(1, 7, Gate.STAGE, 0, "no route"))),
    ]
    told = " ".join(tell(notes))
    for words in ("no room for buffers", "attempt 2", "forward 310", "flip 2 is abort", "no route"):
        assert words in told


def test_a_long_story_is_told_by_its_beginning_and_its_end() -> None:
    notes: list[tuple[float, object]] = [(float(i), f"note {i}") for i in range(500)]
    told = tell(notes)
    assert len(told) == LINES_MAX
    assert told[0].endswith("note 0")
    assert told[-1].endswith("note 499")
    left_out = next(line for line in told if "left out" in line)
    assert left_out == f"({500 - LINES_MAX + 1} lines left out)"


def test_nothing_is_told_of_nothing() -> None:
    assert tell([]) == ()


def ended(world: World, outcome: str) -> EpochEnded:
    """The next epoch that ends so."""
    for _ in range(4000):
        for line in world.log:
            if isinstance(line, EpochEnded) and line.outcome == outcome:
                return line
        world.run(20)
    raise AssertionError(world.story())


def test_an_aborted_epoch_tells_who_refused_and_why() -> None:
    world = World(seed=4)
    world.ranks[1].refuse_next = "no buffers here"
    line = ended(world, "aborted")
    assert line.story[0].endswith("prepare")
    assert any("rank 1: nack, no buffers here" in told for told in line.story)
    assert line.story[-1].endswith("aborted")


def test_a_settled_epoch_has_no_story_to_tell() -> None:
    assert ended(World(seed=4), "settled").story == ()


def test_a_rank_that_returns_says_how_it_stands() -> None:
    world = World(seed=4)
    stands = world.ranks[2].stands()
    assert stands.standing is Standing.IDLE
    (told,) = tell([(0.0, (2, stands))])
    assert told == "+0.000 s rank 2: stands idle in epoch 0, pending 0"
