"""The daemon's door, knocked at: every way in which it does not open, and what is said then."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from eplbd_vllm.door import knock

KNOCK_AS_NOBODY = """
import os, sys
from eplbd_vllm.door import knock
os.setgid(65534)
os.setuid(65534)
print(knock(sys.argv[1]))
"""


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    """A socket that somebody listens on."""
    path = tmp_path / "w.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield path


def test_an_open_door_is_not_worth_a_word(listening: Path) -> None:
    assert knock(f"ipc://{listening}") == ""


def test_no_daemon(tmp_path: Path) -> None:
    said = knock(f"ipc://{tmp_path}/w.sock")
    assert str(tmp_path / "w.sock") in said
    assert "start `eplbd serve`" in said


def test_a_daemon_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
    assert "nothing listens" in knock(f"ipc://{path}")


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    assert "too long" in knock(f"ipc://{tmp_path}/{'x' * 200}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.slow
def test_a_door_that_is_closed_to_the_engines_user() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            for mode in (0o700, 0o755):
                Path(folder).chmod(mode)
                path.chmod(0o660)
                command = [sys.executable, "-c", KNOCK_AS_NOBODY, f"ipc://{path}"]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                assert "closed to user nobody" in done.stdout
                assert ("daemon.socket_mode" in done.stdout) == (mode == 0o755)
