"""How many groups a daemon takes up, what their books may come to, and which make room."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from eplbd.core import messages as m
from eplbd.core.admission import GROUPS_MAX, STORED_MAX, books_bytes
from eplbd.core.events import Effect, Event, Note, Received, Send, Tick
from eplbd.core.node import Node
from eplbd.core.placement import Placement
from eplbd.core.settings import SessionSettings, Settings
from tests.hellos import hello as plain
from tests.sim.world import World

HELLO = plain(layers=4)
SILENCE_S = 3.0
STEPS = 64


def told(node: Node, *events: Event) -> list[Effect]:
    return [effect for event in events for effect in node.step(event)]


def hello(name: str, **said: object) -> Received:
    return Received(name.encode(), 1, replace(HELLO, group=name, **said))  # type: ignore[arg-type]


def refusals(effects: list[Effect]) -> list[str]:
    return [
        effect.message.reason
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, m.Refused)
    ]


def full(node: Node) -> None:
    effects = told(node, *(hello(f"full{i}") for i in range(GROUPS_MAX)))
    assert not refusals(effects)
    assert refusals(told(node, hello("more")))


def test_groups_whose_ranks_are_gone_make_room() -> None:
    node = Node(Settings())
    full(node)
    alive = Received(b"full0", 2, m.Pulse(1))
    told(node, Tick(SILENCE_S - 1), alive, Tick(SILENCE_S + 1))
    effects = told(node, hello("more"))
    assert not refusals(effects)
    dropped = [e.fields["group"] for e in effects if isinstance(e, Note) and "dropped" in e.event]
    assert len(dropped) == 1
    assert dropped != ["full0"], "its rank is there"
    assert len(node.balancers) == GROUPS_MAX
    assert dropped[0].encode() not in node.members  # type: ignore[attr-defined]
    node.check()


def test_no_group_makes_room_while_a_rank_of_it_is_there() -> None:
    node = Node(Settings())
    full(node)
    for turn in range(2, 20):
        told(node, *(Received(f"full{i}".encode(), turn, m.Pulse(1)) for i in range(GROUPS_MAX)))
        told(node, Tick(turn * SILENCE_S / 2))
    assert refusals(told(node, hello("more")))


def test_a_group_that_made_room_is_led_under_a_newer_term() -> None:
    """Its ranks were away, not dead: what they obeyed last is older than what they hear now."""
    world = World()
    world.settle()
    node = world.node
    assert node is not None
    old = node.balancers["sim"].group
    full_at = node.now + 100.0
    told(node, Tick(full_at))
    told(node, *(hello(f"full{i}") for i in range(GROUPS_MAX)))
    assert "sim" not in node.balancers
    assert node.stored["sim"].term == old.term
    assert node.stored["sim"].placement == old.placement
    world.now = full_at + 2 * SILENCE_S
    world.settle()
    assert node.balancers["sim"].group.term > old.term


def test_what_is_kept_of_groups_that_made_room_is_bounded() -> None:
    node = Node(Settings())
    for turn in range(2 * STORED_MAX // GROUPS_MAX + 2):
        told(node, Tick(turn * (SILENCE_S + 1)))
        told(node, *(hello(f"{turn}.{i}") for i in range(GROUPS_MAX)))
    assert len(node.balancers) == GROUPS_MAX
    assert len(node.stored) == STORED_MAX
    assert len(node.totals) <= GROUPS_MAX


def test_a_group_whose_books_would_be_too_large_is_told_the_setting() -> None:
    node = Node(Settings())
    (reason,) = refusals(told(node, hello("vast", layers=128, experts=8_192, slots_per_rank=8_192)))
    assert "session.max_books_bytes" in reason
    assert "balance.window_steps" in reason
    assert not node.balancers


def test_groups_share_the_room_for_books() -> None:
    window = Settings().balance.window_steps
    enough = 3 * books_bytes(HELLO, window)
    node = Node(Settings(session=SessionSettings(max_books_bytes=enough)))
    assert not refusals(told(node, hello("a"), hello("b"), hello("c")))
    (reason,) = refusals(told(node, hello("d")))
    assert "session.max_books_bytes" in reason
    told(node, Tick(SILENCE_S + 1))
    assert not refusals(told(node, hello("d")))


@pytest.mark.parametrize(("layers", "experts", "ranks"), [(58, 256, 1_024), (61, 512, 4_096)])
def test_the_largest_groups_that_are_planned_for_have_room(
    layers: int, experts: int, ranks: int
) -> None:
    large = replace(HELLO, layers=layers, experts=experts, ranks=ranks, slots_per_rank=2)
    defaults = Settings()
    needed = books_bytes(large, defaults.balance.window_steps)
    assert needed < defaults.session.max_books_bytes


def test_full_books_take_no_more_than_was_said() -> None:
    node, window = Node(Settings()), Settings().balance.window_steps
    wide = replace(HELLO, layers=16, experts=256, slots_per_rank=256)
    placed = Placement.linear(wide.layers, wide.experts, 1, wide.slots_per_rank)
    idle = m.Stands(1, 0, placed.digest, m.Standing.IDLE, 0, 0, 0, placed.slots)
    tracemalloc.start()
    try:
        told(node, Received(b"g", 1, wide), Received(b"g", 2, idle))
        for turn in range(3 * window // STEPS):
            report = _report(wide, STEPS * turn, ("decode", "prefill")[turn % 2])
            told(node, Received(b"g", 3 + turn, report))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    ledger = node.balancers["g"].ledger
    assert ledger is not None
    assert ledger.statistics().steps == 3 * window
    assert books_bytes(wide, window) / 4 < held <= books_bytes(wide, window)


def _report(of: m.Hello, first: int, phase: str) -> m.HeatReport:
    counts = np.ones((STEPS, of.layers, of.slots_per_rank), dtype=np.int32)
    return m.HeatReport(
        epoch=0,
        first_forward=first,
        phase=phase,
        counts=counts,
        routed=counts.sum(axis=(1, 2), dtype=np.int64),
        tokens=np.ones(STEPS, dtype=np.int32),
        dummy=np.zeros(STEPS, dtype=np.bool_),
    )
