"""`balance.rank_speed` as it is written: what is one, and what is refused with its place."""

from __future__ import annotations

import pytest

from eplbd.config import assigned, load
from eplbd.core.speed import declared
from eplbd.errors import ConfigError


@pytest.mark.parametrize("entry", ["3=0.5", "0=2", "m:3=0.05", "a:b:12=1.25", "7=9999.0"])
def test_what_is_a_speed(entry: str) -> None:
    found = load(flags=assigned([f"balance.rank_speed={entry}"])).config.balance.rank_speed
    assert found == (entry,)
    assert len(declared(found, entry.rpartition(":")[0], 99)) == 1


@pytest.mark.parametrize(
    "entry", ["3", "3=", "=0.5", "3=0", "3=0.0", "3=-1", "x=1", "3=1e3", "3=nan", "3=00.5", ":=1"]
)
def test_what_is_none(entry: str) -> None:
    with pytest.raises(ConfigError, match="rank_speed"):
        load(flags={"balance.rank_speed": entry})
