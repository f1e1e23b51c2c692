"""Where a worker learns which daemon is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from eplbd.config import Config
from eplbd.errors import ConfigError
from eplbd_vllm.settings import disabled, from_environment


def test_without_a_word_it_is_the_daemons_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eplbd_vllm.settings.SYSTEM_FILE", Path("/nowhere/eplbd.toml"))
    settings = from_environment({})
    assert settings.socket == Config().daemon.socket
    assert settings.experts_per_rank == Config().epoch.experts_per_rank
    assert (settings.group, settings.route) == ("", "auto")


def test_one_file_serves_both(tmp_path: Path) -> None:
    file = tmp_path / "eplbd.toml"
    file.write_text('[daemon]\nsocket = "ipc:///a/b"\n[epoch]\nexperts_per_rank = 5\n')
    settings = from_environment({"EPLBD_CONFIG": str(file)})
    assert (settings.socket, settings.experts_per_rank) == ("ipc:///a/b", 5)
    over = {"EPLBD_CONFIG": str(file), "EPLBD_DAEMON__SOCKET": "ipc:///c"}
    assert from_environment(over).socket == "ipc:///c"
    assert from_environment({**over, "EPLBD_SOCKET": "ipc:///d"}).socket == "ipc:///d"


def test_a_placement_to_begin_with_is_that_of_mode_static(tmp_path: Path) -> None:
    file = tmp_path / "eplbd.toml"
    file.write_text('[balance]\nmode = "static"\nmap = "/a/map.json"\n')
    assert from_environment({"EPLBD_CONFIG": str(file)}).opening == Path("/a/map.json")
    other = {"EPLBD_CONFIG": str(file), "EPLBD_BALANCE__MODE": "hold", "EPLBD_BALANCE__MAP": ""}
    assert from_environment(other).opening is None


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"EPLBD_SOCKET": "tcp://1.2.3.4:5"}, "EPLBD_SOCKET=tcp"),
        ({"EPLBD_ROUTE": "carrier-pigeon"}, "auto, device, host"),
        ({"EPLBD_CONFIG": "/nowhere/eplbd.toml"}, "/nowhere/eplbd.toml"),
        ({"EPLBD_EPOCH__EXPERTS_PER_RANK": "none"}, "EXPERTS_PER_RANK"),
    ],
)
def test_what_is_wrong_is_named(env: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        from_environment(env)


@pytest.mark.parametrize(
    ("env", "off"),
    [({}, False), ({"EPLBD_DISABLE": ""}, False), ({"EPLBD_DISABLE": "0"}, False)]
    + [({"EPLBD_DISABLE": word}, True) for word in ("1", "true", "yes")],
)
def test_the_switch(env: dict[str, str], off: bool) -> None:
    assert disabled(env) is off
