"""What an operator had kept: placements by name, orders over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from eplbd.core.commands import Keep
from eplbd.core.orders import EVERY_LAYER, Hold, Orders
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.runtime.saved import ORDERS, SAVED_MAX, Saved, read_orders, write_orders

ONE, OTHER = Placement.linear(2, 4, 2, 3), Placement.linear(2, 4, 3, 2)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    assert saved.names("g") == []
    path = saved.write(Keep("g", "monday", ONE))
    assert path.exists()
    saved.write(Keep("g/../h", "monday", OTHER))
    assert saved.load("g", "monday") == ONE
    assert saved.load("g/../h", "monday") == OTHER
    assert {file.parent.parent for file in tmp_path.rglob("*.npz")} == {tmp_path / "saved"}
    saved.write(Keep("g", "monday", OTHER))
    assert (saved.names("g"), saved.load("g", "monday")) == (["monday"], OTHER)


def test_what_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    with pytest.raises(ConfigError, match="saved: none"):
        saved.load("g", "monday")
    saved.write(Keep("g", "monday", ONE))
    with pytest.raises(ConfigError, match="did you mean `monday`"):
        saved.load("g", "mondya")
    path = next(tmp_path.rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=r"monday\.npz"):
        saved.load("g", "monday")


def test_there_is_an_end_to_keeping(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    for number in range(SAVED_MAX):
        saved.write(Keep("g", str(number), ONE))
    with pytest.raises(ConfigError, match=f"{SAVED_MAX} placements are the most"):
        saved.write(Keep("g", "more", ONE))
    saved.write(Keep("g", "0", OTHER))
    saved.write(Keep("h", "more", ONE))


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "saved").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        Saved(tmp_path).write(Keep("g", "monday", ONE))


def test_orders_come_back_without_a_pause(tmp_path: Path) -> None:
    frozen = Orders(
        Hold(frozen=True, who="alice", why="night"),
        frozenset({(EVERY_LAYER, 3), (1, 2)}),
        frozenset({0, 7}),
    )
    assert read_orders(tmp_path) == ({}, "")
    write_orders(tmp_path, {"": Orders(frozen.hold), "g": frozen})
    assert read_orders(tmp_path) == ({"": Orders(frozen.hold), "g": frozen}, "")
    write_orders(tmp_path, {})
    assert read_orders(tmp_path) == ({}, "")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"g": {"pins": 3}}', '{"g": {"drained": [true]}}']
)
def test_orders_that_cannot_be_read_freeze_everybody(tmp_path: Path, text: str) -> None:
    (tmp_path / ORDERS).write_text(text)
    orders, reason = read_orders(tmp_path)
    assert "cannot be read" in reason
    hold = orders[""].hold
    assert hold is not None
    assert hold.frozen
    assert ORDERS in hold.why
