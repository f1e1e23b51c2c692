"""Who is let in, and what is counted on the way."""

import re
from dataclasses import replace
from typing import Any

import pytest

from eplbd.core import messages as m
from eplbd.core.session import Session, refuse_hello, same_group
from tests.hellos import hello

HELLO = hello(ranks=4, layers=6, experts=32, slots_per_rank=10, expert_bytes=100)


def test_a_fitting_hello_is_welcome() -> None:
    assert refuse_hello(HELLO) == ""
    assert same_group(replace(HELLO, rank=3), HELLO) == ""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"wire": 0, "wire_min": 0}, "upgrade the worker's eplbd"),
        ({"wire": 9, "wire_min": 9}, "upgrade the eplbd daemon"),
        ({"ranks": 0}, "ranks is 0"),
        ({"layers": 1 << 20}, "layers is 1048576"),
        ({"rank": 4}, r"rank is 4, expected 0\.\.3"),
        ({"experts": 41}, "give the engine more redundant experts"),
        ({"ranks": 60000, "layers": 60000, "slots_per_rank": 60000}, "exceeds"),
        ({"expert_bytes": -1}, "must not be negative"),
    ],
)
def test_refusals_name_the_fix(wrong: dict[str, Any], said: str) -> None:
    assert re.search(said, refuse_hello(replace(HELLO, **wrong)))


@pytest.mark.parametrize(
    "wrong",
    [{"layers": 7}, {"layout_digest": "other"}, {"dispatch": m.Dispatch.REPLICATED}],
)
def test_ranks_of_one_group_must_agree(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    said = same_group(replace(HELLO, rank=2, **wrong), HELLO)
    assert name in said
    assert "rank 2" in said


def test_gaps_and_repeats_are_counted() -> None:
    session = Session(b"p", HELLO, 0.0)
    for seq in (1, 2, 5, 5, 4, 6):
        session.received(seq, 1.0)
    assert (session.seq, session.gaps, session.repeats) == (6, 2, 2)
