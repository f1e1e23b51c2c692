"""Traffic: all ranks agree by step number, topics change, and their heat is skewed and distinct."""

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eplbd.core.messages import Dispatch
from eplbd.core.placement import Placement, par, rank_load
from eplbd.demo.model import Dense, normalised
from eplbd.demo.shape import Shape
from eplbd.demo.text import TOPICS
from eplbd.demo.traffic import Schedule, Traffic
from eplbd.traces.archive import HeatTrace

pytestmark = pytest.mark.slow

SHAPE = Shape()
TURN = 6


@cache
def replicated() -> Traffic:
    return Traffic(SHAPE, Dispatch.REPLICATED, 0, Schedule(steps=TURN))


def trace() -> HeatTrace:
    heat = np.random.default_rng(0).integers(100, 200, size=(3, SHAPE.layers, SHAPE.experts))
    return HeatTrace(heat.astype(np.int64), SHAPE.topk, ("a", "b", ""), json.loads("{}"))


def test_ranks_own_consecutive_slices_of_what_replicated_ranks_all_see() -> None:
    whole = replicated().batch(7)
    parts = [
        Traffic(SHAPE, Dispatch.ALL_TO_ALL, r, Schedule(steps=TURN)).batch(7) for r in range(4)
    ]
    assert whole.ids.tolist() == [part.ids[0].tolist() for part in parts]
    assert whole.index.equal(torch.cat([part.index for part in parts]))
    assert whole.index.tolist() == list(range(SHAPE.ranks * SHAPE.tokens))
    for before, after in pairwise(whole.ids):
        assert before[-SHAPE.context :].tolist() == after[: SHAPE.context].tolist()


def test_traffic_is_repeatable_and_goes_on_for_ever() -> None:
    again = Traffic(SHAPE, Dispatch.REPLICATED, 2, Schedule(steps=TURN))
    for step in (0, 1, 99, 100_000):
        assert again.batch(step).ids.equal(replicated().batch(step).ids)
    assert not again.batch(0).ids.equal(again.batch(1).ids)


def test_topics_take_turns() -> None:
    names = [replicated().label(step) for step in range(TURN * (len(TOPICS) + 1))]
    assert names == [topic.name for topic in (*TOPICS, TOPICS[0]) for _ in range(TURN)]


def test_a_dummy_step_has_context_and_no_tokens() -> None:
    dummy = replicated().dummy()
    assert dummy.tokens == 0
    assert Dense(SHAPE, 0).embed(dummy.ids).shape == (0, SHAPE.hidden)


def test_a_hidden_state_sees_its_context_and_nothing_else() -> None:
    dense = Dense(SHAPE, 0)
    ids = replicated().batch(0).ids[:1]
    state = dense.embed(ids)
    changed = ids.clone()
    place = SHAPE.context + 10
    changed[0, place] = (changed[0, place] + 1) % SHAPE.vocabulary
    moved = (dense.embed(changed) - state).abs().amax(1) > 1e-4
    assert not moved[:10].any(), "a token saw its future"
    assert moved[10 : 10 + SHAPE.context + 1].all()


def test_a_trace_drives_the_routing_alike_on_all_ranks() -> None:
    schedule = Schedule(steps=2)
    whole = Traffic(SHAPE, Dispatch.REPLICATED, 1, schedule, trace()).batch(3).experts
    assert whole is not None
    assert whole.shape == (SHAPE.layers, SHAPE.ranks * SHAPE.tokens, SHAPE.topk)
    parts = [Traffic(SHAPE, Dispatch.ALL_TO_ALL, r, schedule, trace()).batch(3) for r in range(4)]
    assert torch.cat([p.experts for p in parts if p.experts is not None], 1).equal(whole)
    following = Traffic(SHAPE, Dispatch.REPLICATED, 1, schedule, trace()).batch(4).experts
    assert following is not None
    assert not following.equal(whole)


def test_a_trace_names_its_windows_in_turn() -> None:
    traffic = Traffic(SHAPE, Dispatch.REPLICATED, 0, Schedule(steps=2), trace())
    assert [traffic.label(step) for step in range(7)] == [*"aabb", "window 2", "window 2", "a"]


def heat(topic: int, steps: int = 20) -> NDArray[np.int64]:
    """`[steps, layers, experts]` tokens per step that the gates send on one topic's text.

    Without experts: a gate sees the dense part of the hidden state, which is most of it.
    """
    dense = Dense(SHAPE, 0)
    traffic = Traffic(SHAPE, Dispatch.REPLICATED, 0, Schedule(steps=steps))
    found = np.zeros((steps, SHAPE.layers, SHAPE.experts), dtype=np.int64)
    for step in range(steps):
        x = dense.embed(traffic.batch(topic * steps + step).ids)
        for layer in range(SHAPE.layers):
            x = x + normalised(x) @ dense.mix[layer]
            chosen = (normalised(x) @ dense.gates[layer]).topk(SHAPE.topk)[1]
            found[step, layer] = np.bincount(chosen.flatten().numpy(), minlength=SHAPE.experts)
    return found


def test_every_topic_is_unbalanced_in_its_own_way() -> None:
    linear = Placement.linear(SHAPE.layers, SHAPE.experts, SHAPE.ranks, SHAPE.slots_per_rank)
    by_topic = [heat(topic) for topic in range(len(TOPICS))]
    for topic, found in zip(TOPICS, by_topic, strict=True):
        unbalanced = float(par(rank_load(linear, found)).mean())
        assert 1.4 < unbalanced < 2.6, f"{topic.name}: PAR {unbalanced:.2f}"
    shares = [found.sum(0) / found.sum((0, 2))[:, None] for found in by_topic]
    for here, there in pairwise([*shares, shares[0]]):
        assert np.abs(here - there).sum(-1).mean() / 2 > 0.2, "two topics heat the same experts"
