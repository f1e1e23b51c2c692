"""What every executor promises, over each that this machine has."""

from dataclasses import replace

import pytest

from tests.worker import scenarios, weights
from tests.worker.ranks import Setting, Stage, row
from tests.worker.scenarios import Contents, Outcome

MOVE = [row(0, 0, 7, (0, 1), (1, 2))]
SWAP = [row(0, 0, 1, (0, 0), (1, 1)), row(0, 0, 2, (1, 1), (0, 0))]
TREE = [
    row(0, 2, 5, (0, 0), (1, 1)),
    row(1, 2, 5, (1, 1), (2, 2), relay=0),
    row(1, 2, 5, (0, 0), (3, 0)),
]
"""Rank 0's expert to three others: rank 1 passes on what it staged a round earlier."""
LOCAL = [
    row(0, 1, 3, (0, 0), (0, 2)),
    row(0, 0, 8, (1, 0), (0, 1), 1),
    row(1, 0, 8, (0, 1), (0, 2), 2, relay=1),
]
"""A copy from a slot, an arrival, and a copy of the arrival, all at rank 0."""
MANY = [
    row(0, 0, 1, (0, 0), (1, 0), 0),
    row(0, 1, 2, (1, 1), (2, 0), 0),
    row(0, 2, 3, (2, 2), (0, 0), 0),
    row(1, 1, 4, (0, 1), (1, 2), 1),
    row(1, 0, 5, (2, 1), (0, 2), 1),
]


def first(ranks: int) -> list[Contents]:
    """What every slot held at first."""
    return [
        {
            (layer, slot): weights.contents(rank, layer, slot)
            for layer in range(weights.LAYERS)
            for slot in range(weights.SLOTS)
        }
        for rank in range(ranks)
    ]


def after(before: list[Contents], rows: list[tuple[int, ...]]) -> list[Contents]:
    """What every slot must hold after `rows`: each arrival equals what its tree's root held."""
    now = [dict(each) for each in before]
    held: dict[tuple[int, int], dict[str, bytes]] = {}
    for _, layer, _, src, slot, relay, dst, target, buffer in sorted(rows):
        found = held[src, relay] if relay >= 0 else before[src][layer, slot]
        held[dst, buffer] = now[dst][layer, target] = found
    return now


def contents(outcomes: list[Outcome]) -> list[Contents]:
    return [outcome.contents for outcome in outcomes]


@pytest.mark.parametrize(
    ("rows", "ranks"),
    [(MOVE, 2), (SWAP, 2), (TREE, 4), (LOCAL, 2), (MANY, 3), ([], 2)],
    ids=["move", "swap", "tree", "local", "many", "nothing"],
)
def test_bytes_are_equal_after_a_commit(
    stage: Stage, setting: Setting, rows: list[tuple[int, ...]], ranks: int
) -> None:
    setting = replace(setting, experts_per_rank=3)
    outcomes = stage.play(setting, ranks, scenarios.epochs, [rows])
    assert [outcome.errors for outcome in outcomes] == [[]] * ranks
    assert contents(outcomes) == after(first(ranks), rows)


def test_nothing_changes_by_a_discard(stage: Stage, setting: Setting) -> None:
    outcomes = stage.play(setting, 4, scenarios.epochs, [TREE], "discard")
    assert contents(outcomes) == first(4)


def test_staging_is_used_again_by_the_next_epoch(stage: Stage, setting: Setting) -> None:
    tables = [SWAP, MOVE, SWAP]
    outcomes = stage.play(setting, 2, scenarios.epochs, tables)
    expected = first(2)
    for rows in tables:
        expected = after(expected, rows)
    assert contents(outcomes) == expected
    once = stage.play(setting, 2, scenarios.epochs, tables[:1])
    for one, three in zip(once, outcomes, strict=True):
        assert one.statistics is not None
        assert three.statistics is not None
        assert one.statistics.staging_bytes == three.statistics.staging_bytes > 0
        assert three.statistics.commits == 3


def test_bytes_are_counted(stage: Stage, setting: Setting) -> None:
    setting = replace(setting, experts_per_rank=3)
    found = [each.statistics for each in stage.play(setting, 2, scenarios.epochs, [LOCAL])]
    even, odd = (sum(map(len, weights.contents(0, layer, 0).values())) for layer in (0, 1))
    assert [(s.bytes_sent, s.bytes_received, s.bytes_copied) for s in found if s] == [
        (0, even, even + odd),
        (even, 0, 0),
    ]


@pytest.mark.parametrize("how", ["flip", "swap"])
def test_damage_in_staging_is_found(stage: Stage, setting: Setting, kind: str, how: str) -> None:
    skip_without_host_view(kind)
    outcomes = stage.play(setting, 2, scenarios.damaged, SWAP, 1, how, 0)
    assert outcomes[0].errors == []
    (error,) = outcomes[1].errors
    assert "layer 0, expert 1, rank 0 to rank 1" in error
    assert "'w13' differs" in error
    assert "w2" not in error
    assert outcomes[1].contents == first(2)[1], "damaged bytes reached a slot"


def test_a_relay_that_damages_an_expert_is_found_out_at_the_leaf(
    stage: Stage, setting: Setting, kind: str
) -> None:
    skip_without_host_view(kind)
    outcomes = stage.play(setting, 4, scenarios.damaged, TREE, 1, "flip", 0)
    assert [len(outcome.errors) for outcome in outcomes] == [0, 1, 1, 0]
    assert "layer 2, expert 5, rank 1 to rank 2: 'w13' differs" in outcomes[2].errors[0]
    expected = first(4)
    expected[3] = after(expected, TREE)[3]
    assert contents(outcomes) == expected


def skip_without_host_view(kind: str) -> None:
    if "cuda" in kind:
        pytest.skip("the damage is done through a host view of the staging buffer")


def test_a_peer_that_never_comes_is_waited_for_only_so_long(stage: Stage, setting: Setting) -> None:
    rows = [
        row(0, 0, 4, (0, 0), (1, 2)),
        row(0, 0, 6, (1, 0), (0, 2)),
        row(1, 0, 4, (0, 0), (2, 2)),
    ]
    setting = replace(setting, timeout_s=1.0)
    outcomes = stage.play(setting, 3, scenarios.absent, rows, 1)
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.broken
        assert max(outcome.seconds) < 4.0
    assert "round 0, layer 0, expert" in outcomes[0].errors[0]
    assert "rank 1" in outcomes[0].errors[0], "the peer must be named"
    assert "lane is broken" in outcomes[0].errors[1], "a broken lane must fail at once"
    assert outcomes[0].seconds[1] < 0.5
    assert "round 1, layer 0, expert 4, rank 0 to rank 2" in outcomes[2].errors[0]
    assert "not everything was staged" in outcomes[2].errors[-1]
    assert contents(outcomes) == after(first(3), rows), "a renewed lane must work"


def test_a_work_beyond_the_staging_memory_is_refused(stage: Stage, setting: Setting) -> None:
    bad = [row(0, 0, 9, (0, 0), (1, 1), 2)]
    outcomes = stage.play(setting, 2, scenarios.refused, bad, MOVE)
    assert outcomes[0].errors == []
    (error,) = outcomes[1].errors
    assert "needs staging buffer 2 of 2" in error
    assert contents(outcomes) == after(first(2), MOVE)


def test_ranks_with_different_tensors_do_not_meet(stage: Stage, setting: Setting) -> None:
    told = stage.play(replace(setting, odd_rank=1), 2, scenarios.meets)
    assert all("layout" in complaint for complaint in told)


def test_calls_out_of_order_are_refused(stage: Stage, setting: Setting) -> None:
    assert stage.play(setting, 2, scenarios.misused, SWAP) == [[], []]
