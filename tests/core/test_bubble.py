"""The pace: it finds the bubble, keeps under the ceiling, never stops, and comes back."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eplbd.core.bubble import Pace, Pacer
from eplbd.core.links import Links
from eplbd.errors import RemoteProtocolError

FORWARD_S = 0.02
EXPERT_BYTES = 1_000_000


class Engine:
    """Forwards of 20 ms in which `room` experts per forward travel for nothing, more at a price."""

    def __init__(self, room: float) -> None:
        self.room = room

    def run(self, pacer: Pacer) -> tuple[Pace, float]:
        """Stage one epoch; return its pace and how much it inflated a forward."""
        pacer.observe(forward_s=FORWARD_S)
        pace = pacer.pace()
        over = max(0.0, speed(pace) - self.room)
        inflation = 1 + over
        pacer.observe(staging_forward_s=FORWARD_S * inflation)
        return pace, inflation


def last(pacer: Pacer, engine: Engine, epochs: int) -> Pace:
    return [engine.run(pacer) for _ in range(epochs)][-1][0]


def speed(pace: Pace) -> float:
    return 1 / pace.stride


@given(st.floats(0.03, 1))
def test_finds_the_bubble(room: float) -> None:
    pacer, engine = Pacer(expert_bytes=EXPERT_BYTES), Engine(room)
    for _ in range(60):
        engine.run(pacer)
    late = [engine.run(pacer) for _ in range(60)]
    over = [inflation > 1.05 for _, inflation in late]
    assert not any(a and b for a, b in zip(over[1:], over, strict=False)), "twice in a row"
    mean = sum(speed(pace) for pace, _ in late) / len(late)
    # Whole strides waste up to half of the room, the sawtooth a quarter.
    assert mean >= 0.35 * room


def test_never_overruns_a_bubble_with_room_for_a_round_in_each_forward() -> None:
    pacer, engine = Pacer(), Engine(room=1.0)
    assert all(engine.run(pacer)[1] <= 1.05 for _ in range(200))


def test_never_slower_than_the_floor_and_recovers() -> None:
    pacer, engine = Pacer(expert_bytes=EXPERT_BYTES), Engine(room=-1.0)
    pace = last(pacer, engine, 20)
    assert (pace.stride, pace.experts_per_epoch) == (64, 1)
    engine.room = 2.0
    pace = last(pacer, engine, 20)
    assert pace.stride == 1
    assert pace.experts_per_epoch == 2


def test_never_faster_than_a_round_in_each_forward() -> None:
    """And a pace that was never reached is no credit: one bad trial slows the next epoch."""
    pacer, engine = Pacer(), Engine(room=1000.0)
    assert last(pacer, engine, 200).stride == 1
    engine.room = 0.0
    engine.run(pacer)
    assert pacer.pace().stride == 2


def test_begins_so_slow_that_nothing_need_overlap() -> None:
    # 1 GB/s carries 20 experts of 1 MB in a forward of 20 ms; 5 % of them is one.
    pacer = Pacer(expert_bytes=EXPERT_BYTES, links=Links(node_bytes_per_s=1e9))
    pacer.observe(forward_s=FORWARD_S)
    assert pacer.pace().stride == 1
    assert Pacer().pace().stride == 4


def test_never_faster_than_the_link() -> None:
    pacer, engine = (
        Pacer(expert_bytes=EXPERT_BYTES, links=Links(node_bytes_per_s=25e6)),
        Engine(room=1000.0),
    )
    pace = last(pacer, engine, 50)
    assert pace.stride == 2


@example([(5e-324, 86_400.0), (0.0, 0.0)])
@example([(86_400.0, 1e-6)] * 9)
@given(st.lists(st.tuples(st.floats(0, 86_400), st.floats(0, 86_400))))
def test_asking_again_changes_nothing(pulses: list[tuple[float, float]]) -> None:
    pacer = Pacer()
    for forward_s, staging_forward_s in pulses:
        pacer.observe(forward_s=forward_s, staging_forward_s=staging_forward_s)
    pace = pacer.pace()
    assert pacer.pace() == pace
    assert 1 <= pace.stride <= 64
    assert math.isfinite(pacer.round_cost_s)


def test_a_trial_without_a_baseline_is_kept_until_there_is_one() -> None:
    pacer = Pacer()
    pacer.observe(staging_forward_s=FORWARD_S * 2)
    assert pacer.pace().stride == 4
    pacer.observe(forward_s=FORWARD_S)
    assert pacer.pace().stride == 8


def test_many_ranks_are_one_trial() -> None:
    pacer = Pacer()
    for _ in range(1000):
        pacer.observe(forward_s=FORWARD_S, staging_forward_s=FORWARD_S * 1.2)
    assert pacer.pace().stride == 8


def test_the_ceiling_may_move() -> None:
    pacer = Pacer()
    pacer.ceiling = 1.5
    pacer.observe(forward_s=FORWARD_S, staging_forward_s=FORWARD_S * 1.2)
    assert pacer.pace().stride == 3


def test_what_a_round_costs() -> None:
    pacer = Pacer()
    assert pacer.round_cost_s == 0
    pacer.observe(forward_s=FORWARD_S)
    pacer.pace()
    assert pacer.round_cost_s == pytest.approx(0.05 * FORWARD_S * 4), "the ceiling, unmeasured"
    pacer.observe(staging_forward_s=FORWARD_S * 1.02)
    pace = pacer.pace()
    assert pacer.round_cost_s == pytest.approx(0.02 * FORWARD_S * 4), "a round in four forwards"
    assert pace.stride == 3
    for _ in range(2):
        pacer.observe(staging_forward_s=FORWARD_S * 0.9)
        pacer.pace()
    assert pacer.round_cost_s == 0, "never negative"


# --- a machine that is busy with something else ---------------------------------------------------


def busy(pacer: Pacer, rng: random.Random, trials: int, slowest: float) -> None:
    """Trials whose forwards take any time up to `slowest` times the usual, whatever is staged."""
    for _ in range(trials):
        for _ in range(12):
            pacer.observe(
                forward_s=FORWARD_S * rng.uniform(1, 1.2),
                staging_forward_s=FORWARD_S * rng.uniform(1, slowest),
            )
        pacer.pace()


@given(st.integers(0, 2**32), st.floats(2, 10_000), st.integers(1, 60))
def test_what_a_round_costs_is_bounded_however_slow_forwards_are(
    seed: int, slowest: float, trials: int
) -> None:
    pacer = Pacer()
    busy(pacer, random.Random(seed), trials, slowest)
    assert pacer.round_cost_s <= 64 * 1.2 * FORWARD_S, (
        "a round staged alone, forwards twice as long"
    )


def test_trials_at_the_floor_do_not_make_rounds_dear() -> None:
    """Forwards a tenth longer by chance, in each of 64 of them, are not what one round costs."""
    pacer = Pacer()
    for inflation in (1.02, 1.04):
        pacer.observe(forward_s=FORWARD_S, staging_forward_s=FORWARD_S * inflation)
        pacer.pace()
    known = pacer.round_cost_s
    for _ in range(8):
        pacer.observe(forward_s=FORWARD_S, staging_forward_s=FORWARD_S * 1.1)
        pacer.pace()
    assert pacer.pace().stride >= 32
    assert pacer.round_cost_s <= 6 * known


def test_one_rank_that_stood_still_is_not_what_a_round_costs() -> None:
    pacer = Pacer()
    for slow in (1.0, 1.0, 1.0, 500.0):
        pacer.observe(forward_s=FORWARD_S, staging_forward_s=FORWARD_S * 1.02 * slow)
    pacer.pace()
    assert pacer.inflation == pytest.approx(1.02)
    assert pacer.round_cost_s == pytest.approx(0.02 * FORWARD_S * 4)


def test_what_was_too_dear_is_believed_less_and_less() -> None:
    pacer = Pacer()
    pacer.observe(forward_s=FORWARD_S, staging_forward_s=FORWARD_S * 2)
    pacer.pace()
    costs = [pacer.round_cost_s]
    for _ in range(20):
        pacer.doubt()
        costs.append(pacer.round_cost_s)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(0.05 * FORWARD_S * 4, rel=0.01), "as before any measurement"


def test_cheap_moves_are_not_made_dear_by_doubt() -> None:
    pacer = Pacer()
    pacer.observe(forward_s=FORWARD_S, staging_forward_s=FORWARD_S)
    pacer.pace()
    pacer.doubt()
    assert pacer.round_cost_s == 0


def standing(pacer: Pacer) -> tuple[bool, bool]:
    return pacer.over, pacer.helpless


def test_says_when_slower_is_not_possible() -> None:
    pacer, engine = Pacer(expert_bytes=EXPERT_BYTES), Engine(room=-1.0)
    last(pacer, engine, 2)
    assert standing(pacer) == (True, False)
    last(pacer, engine, 20)
    assert standing(pacer) == (True, True)
    engine.room = 2.0
    last(pacer, engine, 2)
    assert standing(pacer) == (False, False)


@pytest.mark.parametrize("value", [-1.0, 86_401.0, math.nan, math.inf])
def test_refuses_what_is_no_duration(value: float) -> None:
    with pytest.raises(RemoteProtocolError, match="staging_forward_s is"):
        Pacer().observe(staging_forward_s=value)
    with pytest.raises(RemoteProtocolError, match="pulse: forward_s is"):
        Pacer().observe(forward_s=value)


def test_the_share_of_the_bubbles_is_that_of_the_busiest_rank_of_the_newest_epoch() -> None:
    pacer = Pacer()
    assert pacer.used == 0.0
    pacer.pace()
    for transfer_s in (0.5, 1.5, 0.0):
        pacer.staged(stage_s=2.0, transfer_s=transfer_s)
    assert pacer.used == 0.75
    pacer.pace()
    assert pacer.used == 0.0, "nobody has said anything of the next one"
    pacer.staged(stage_s=0.0, transfer_s=0.0)
    assert pacer.used == 0.0, "an answer that is given again has no figures"
    pacer.staged(stage_s=1.0, transfer_s=1.0 + 1e-9)
    assert pacer.used == 1.0


@pytest.mark.parametrize("figure", [-1.0, math.nan, math.inf, 1e6])
@pytest.mark.parametrize("name", ["stage_s", "transfer_s"])
def test_what_is_no_duration_of_an_epoch_is_refused(name: str, figure: float) -> None:
    pacer = Pacer()
    with pytest.raises(RemoteProtocolError, match=f"staged: {name}"):
        pacer.staged(**{"stage_s": 1.0, "transfer_s": 1.0, name: figure})
    assert pacer.used == 0.0


def test_a_round_takes_over_the_network_what_is_through_before_the_next() -> None:
    links = Links(network_bytes_per_s=4 * EXPERT_BYTES / FORWARD_S)
    pacer, engine = Pacer(expert_bytes=EXPERT_BYTES, links=links), Engine(room=1000.0)
    paces = [engine.run(pacer)[0] for _ in range(60)]
    assert all(pace.crossings == 4 * pace.stride for pace in paces)
    assert paces[-1].stride == 1
    assert Pacer().pace().crossings is None, "of an unknown network"


def test_a_network_too_slow_for_one_expert_in_a_forward_makes_rounds_rare() -> None:
    links = Links(network_bytes_per_s=EXPERT_BYTES / FORWARD_S / 10)
    pacer, engine = Pacer(expert_bytes=EXPERT_BYTES, links=links), Engine(room=1000.0)
    pace = last(pacer, engine, 60)
    assert (pace.stride, pace.crossings) == (10, 1)


def test_the_gap_between_forwards_is_time_as_well() -> None:
    links = Links(network_bytes_per_s=EXPERT_BYTES / FORWARD_S)
    pacer = Pacer(expert_bytes=EXPERT_BYTES, links=links)
    pacer.observe(forward_s=FORWARD_S, gap_s=2 * FORWARD_S)
    pace = pacer.pace()
    assert pacer.bubble_s == pytest.approx(3 * FORWARD_S)
    assert pace.crossings == 3 * pace.stride


@given(st.floats(1e3, 1e12), st.floats(1e-4, 1.0), st.floats(0.0, 1.0))
def test_crossings_fit_into_the_time_of_a_round(
    rate: float, forward_s: float, gap_s: float
) -> None:
    pacer = Pacer(expert_bytes=EXPERT_BYTES, links=Links(network_bytes_per_s=rate))
    pacer.observe(forward_s=forward_s, gap_s=gap_s)
    pace = pacer.pace()
    assert pace.crossings is not None
    took_s = pace.crossings * EXPERT_BYTES / rate
    assert took_s <= pace.stride * pacer.bubble_s * (1 + 1e-9) or pace.crossings == 1
