"""Parts of the picture as text: they fit their room, and what is wrong is among what is shown."""

from __future__ import annotations

import dataclasses
import itertools

import msgspec
import pytest

from eplbd.core.views import RelayOverview
from eplbd.top import heat, panels
from eplbd.top.heat import heat_lines, shares, spark, symbol
from eplbd.top.history import TREND_S, TRENDS, History
from eplbd.top.once import page
from eplbd.top.wording import Line, cut, duration, plain, printable, size
from eplbd.wire.stream import Group
from tests.top import pictures

SHAPES = [(1, 1), (4, 2), (12, 8), (58, 16), (61, 64), (94, 320)]


def shown(history: History) -> Group:
    group = history.group(0)
    assert group is not None
    return group


def parts(history: History, width: int, height: int) -> dict[str, list[Line]]:
    group, snapshot = shown(history), history.snapshot
    assert snapshot is not None
    story = history.story(group.name)
    return {
        "header": panels.header_lines(history, group, 99.0, width),
        "heat": heat_lines(group, story, width, height),
        "ranks": panels.ranks_lines(group, width, height),
        "epochs": panels.epochs_lines(group, story, width, height),
        "policies": panels.policies_lines(snapshot, group, story, width, height),
        "budget": panels.budget_lines(group, width, height),
        "notes": panels.notes_lines(history, width, height),
    }


@pytest.mark.parametrize(("layers", "ranks"), SHAPES)
@pytest.mark.parametrize(("width", "height"), [(38, 4), (39, 5), (78, 8), (138, 15), (60, 2)])
def test_every_part_fits_its_room(layers: int, ranks: int, width: int, height: int) -> None:
    history = pictures.history(layers=layers, ranks=ranks)
    for name, lines in parts(history, width, height).items():
        assert lines, name
        assert len(lines) <= max(height, 2), name
        for line in lines:
            assert len(plain(line)) <= width, (name, plain(line))
            assert printable(plain(line)) == plain(line), name


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_page_is_no_wider_than_asked_for_and_moves_no_cursor(width: int) -> None:
    text = page(pictures.history(groups=2), width)
    assert max(map(len, text.split("\n"))) <= width
    assert printable(text.replace("\n", "")) == text.replace("\n", "")
    assert "unreachable: ?[31mgone" in text


def test_a_page_says_everything_that_an_operator_asks() -> None:
    text = page(pictures.history(layers=12), 100)
    for word in (
        "PAR 1.4", "2.31", "15 attached, 1 lost", "40 settled, 1 aborted", "incremental",
        "gain 0.0012 is under min_gain", "flashlb", "suspended", "inflation 1.032 of 1.050",
        "ALARM rank-missing", "rank lost rank=2 reason=silent", "waits for rank 5, 7",
    ):  # fmt: skip
        assert word in text, word


def test_a_page_of_a_daemon_without_a_group_says_so() -> None:
    history = History()
    assert "nothing heard yet" in page(history, 80)
    history.take([pictures.snapshot()])
    assert "no worker has said hello" in page(history, 80)


def relay(**changes: object) -> RelayOverview:
    made = RelayOverview(
        group="moe",
        leader="tcp://10.0.0.1:9477",
        linked=True,
        last_heard_age_s=0.2,
        ranks=(8, 9),
        forwarded=4_711,
        reason="",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize("groups", [0, 1])
def test_a_page_names_what_is_led_elsewhere_where_it_is_all_and_where_it_is_lost(
    groups: int,
) -> None:
    led = [pictures.group(layers=4)] * groups
    for linked, words in ((True, "led at tcp://10.0.0.1:9477"), (False, "the leader is silent")):
        history, reason = History(), "" if linked else "the leader is silent for 9.1 s"
        shown = pictures.snapshot(*led)
        relays = (relay(linked=linked, reason=reason),)
        history.take([msgspec.structs.replace(shown, relays=relays)])
        text = page(history, 140)
        assert (words in text) == (not groups or not linked)
        assert "no worker has said hello" not in text


# --- the heat map -------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(78, 8), (78, 3), (138, 60), (50, 5)])
@pytest.mark.parametrize(("layers", "ranks"), SHAPES[1:])
def test_the_hottest_cell_is_never_hidden(layers: int, ranks: int, width: int, height: int) -> None:
    history = pictures.history(layers=layers, ranks=ranks)
    loads = [row[:] for row in shown(history).rank_load]
    loads[-1][-1] = 999
    group = msgspec.structs.replace(shown(history), rank_load=loads)
    lines = heat_lines(group, history.story("default"), width, height)
    tones = [[span.tone for span in line if span.tone.startswith("heat")] for line in lines[1:]]
    assert tones[-1][-1] == "heat:999"
    assert sum(row.count("heat:999") for row in tones) == 1
    assert len({len(row) for row in tones}) == 1


def test_neighbourhoods_cover_everything_once() -> None:
    for count in (1, 2, 7, 58, 320):
        for room in (1, 2, 3, 10, 57, 58, 400):
            found = shares(count, room)
            assert [n for a, b in found for n in range(a, b + 1)] == list(range(count))
            assert len(found) <= room
            sizes = {b - a for a, b in found}
            assert max(sizes) - min(sizes) <= 1


def test_signs_go_up_with_the_load() -> None:
    signs = [symbol(percent) for percent in range(0, 300, 5)]
    order = ".-+*#@"
    places = [order.index(sign) for sign in signs]
    assert places == sorted(places)
    assert set(signs) == set(order)
    assert all(sign in heat.LEGEND for sign in order)


def test_a_trend_goes_up_with_the_values_and_noise_stays_flat() -> None:
    assert spark([1.0, 1.5, 2.0], 8, 2.0) == "▁▅█"
    assert set(spark([1.01, 1.0, 1.02], 8, 1.02)) == {"▁"}
    assert spark([9.0, 1.0], 1, 2.0) == "▁"


def test_without_heat_the_missing_rank_is_named() -> None:
    group = msgspec.structs.replace(pictures.group(ranks=4), rank_load=[], observed_par=[])
    (line,) = heat_lines(group, pictures.history().story("default"), 78, 8)
    assert "3 of 4 ranks are here, rank 2 is not" in plain(line)


# --- what comes first ---------------------------------------------------------------------------


def test_the_worst_rank_is_first_and_the_rest_are_counted() -> None:
    lines = [plain(line) for line in panels.ranks_lines(pictures.group(ranks=64), 38, 4)]
    assert lines[1].split()[:2] == ["2", "lost"]
    assert lines[2].split()[:3] == ["5", "attached", "7"]
    assert lines[3].strip() == "and 62 more"


def test_the_epoch_under_way_is_above_those_that_ended() -> None:
    history = pictures.history()
    group = shown(history)
    lines = [plain(line) for line in panels.epochs_lines(group, history.story("default"), 80, 9)]
    assert [line.split()[0] for line in lines[1:]] == ["42", "41", "40", "39", "38"]
    assert "rank 2: unreachable" in lines[4]


def test_trouble_is_in_the_header() -> None:
    history = pictures.history()
    assert history.snapshot is not None
    frozen = msgspec.structs.replace(
        pictures.group(), phase="frozen", frozen="ranks differ", paused="maintenance"
    )
    history.take([msgspec.structs.replace(history.snapshot, suspended=True, groups=(frozen,))])
    text = "\n".join(map(plain, panels.header_lines(history, history.group(0), 30.0, 150)))
    for word in (
        "SUSPENDED",
        "NOT HEARD FOR 30 s",
        "PAUSED: maintenance",
        "frozen",
        "ranks differ",
    ):
        assert word in text, word


def test_moves_without_a_limit_or_a_measurement_are_told_as_that() -> None:
    group = pictures.group()
    budget = dataclasses.replace(group.budget, inflation=0.0, forward_s=0.0, max_moves=100)
    group = msgspec.structs.replace(group, budget=budget, last_commit_age_s=None, epoch_now=None)
    text = "\n".join(map(plain, panels.budget_lines(group, 80, 3)))
    assert "not measured" in text
    assert "moving 0 of 100" in text
    assert "last commit never" in text


def test_the_share_of_bubbles_is_told_where_it_is_known() -> None:
    group = pictures.group()
    assert ", 37% of bubbles" in "\n".join(map(plain, panels.budget_lines(group, 80, 3)))
    unknown = dataclasses.replace(group.budget, bubble_used=0.0)
    group = msgspec.structs.replace(group, budget=unknown)
    assert "bubbles" not in "\n".join(map(plain, panels.budget_lines(group, 80, 3)))


# --- what is remembered -------------------------------------------------------------------------


def test_a_trend_has_a_point_per_time_and_its_newest_is_as_new_as_the_snapshot() -> None:
    history = History()
    for second in range(int(TREND_S * (TRENDS + 5))):
        group = msgspec.structs.replace(pictures.group(), observed_par=[float(second)] * 58)
        history.take([pictures.snapshot(group, at_s=pictures.AT_S + second)])
    trend = history.story("default").trend_of(0, 57)
    assert len(trend) == TRENDS
    assert trend[-1] == float(second)
    assert {b - a for a, b in itertools.pairwise(trend[:-1])} == {TREND_S}


def test_a_group_that_came_back_as_another_model_has_no_old_trend() -> None:
    history = pictures.history(layers=58)
    history.take([pictures.snapshot(pictures.group(layers=4), at_s=pictures.AT_S + 100)])
    assert len(history.story("default").trend) == 1


def test_groups_that_come_and_go_are_forgotten() -> None:
    history = History()
    for index in range(500):
        history.story(f"group-{index}")
    assert len(history._stories) <= 64  # noqa: SLF001 - what is kept is the point


# --- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0123, "12 ms"), (0.34, "0.3 s"), (9.94, "9.9 s"), (59.0, "59 s"),
     (90.0, "1.5 min"), (7_200.0, "2.0 h"), (864_000.0, "10 d")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (44e6, "44 MB"), (3e12, "3.0 TB")],
)
def test_sizes(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


def test_foreign_text_is_cut_and_tamed() -> None:
    assert cut("abcdef", 4) == "abc…"
    assert cut("abc", 3) == "abc"
    assert cut("abc", 0) == ""
    assert printable("a\x1b[2J\n\u202eb") == "a?[2J??b"
