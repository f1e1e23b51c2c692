"""Who may call, who is said to call, and what becomes of a call that nobody answers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import zmq

from eplbd.config import load
from eplbd.core import commands as c
from eplbd.errors import ConfigError, RemoteProtocolError
from eplbd.runtime.caller import call, whoever
from eplbd.wire import control as wire
from tests.runtime.process import daemon, write_config

KNOCK = """
import os, sys
from eplbd.errors import ConfigError
from eplbd.runtime.endpoint import knock
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    knock(sys.argv[1], "control.socket", 5.0)
except ConfigError as error:
    print(error)
"""


def ask(file: Path, patience_s: float = 0.5) -> wire.Reply:
    return call(load(file).config, c.Pause(), who="alice", why="a test", patience_s=patience_s)


def test_whoever_names_the_user_and_the_one_behind_sudo() -> None:
    assert f"(uid {os.getuid()})" in whoever({})
    assert whoever({"SUDO_USER": "alice"}).endswith(" for alice")


def test_where_no_daemon_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*control\.sock: no daemon"):
        ask(write_config(tmp_path))


def test_where_a_daemon_was(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as gone:
        gone.bind(f"ipc://{tmp_path}/control.sock")
        (tmp_path / "kept").hardlink_to(tmp_path / "control.sock")
    (tmp_path / "kept").rename(tmp_path / "control.sock")
    with pytest.raises(ConfigError, match="the daemon has ended"):
        ask(write_config(tmp_path))


def test_nobody_answers(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as mute:
        mute.setsockopt(zmq.LINGER, 0)
        mute.bind(f"ipc://{tmp_path}/control.sock")
        with pytest.raises(ConfigError, match=r"no answer on .* may be under way"):
            ask(write_config(tmp_path))


@pytest.mark.slow
def test_a_stranger_is_told_what_is_wrong_and_others_are_served(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with daemon(config) as process, zmq.Context() as context, context.socket(zmq.DEALER) as odd:
        process.told("READY=1")
        odd.setsockopt(zmq.LINGER, 0)
        odd.connect(f"ipc://{tmp_path}/control.sock")
        for frames in ([b""], [b"x"] * 3, [b"\x00" * 100_000, b""]):
            odd.send_multipart(frames)
            assert odd.poll(30_000)
            number, reply = wire.REPLY.decode(odd.recv_multipart())
            assert isinstance(reply, wire.Refused)
            assert (number, "does not understand" in reply.reason) == (0, True)
        alice = wire.Caller(wire.CONTROL_VERSION, "alice", "a test")
        odd.send_multipart(wire.ask(alice, c.Save("../../etc/passwd"), 4))
        number, reply = wire.REPLY.decode(odd.recv_multipart())
        assert isinstance(reply, wire.Refused)
        assert number == 4
        done = ask(config, 30.0)
        assert isinstance(done, wire.Done)
        assert not list((tmp_path / "state").rglob("*.npz"))


@pytest.mark.slow
def test_a_placement_that_would_hurt_is_refused(tmp_path: Path) -> None:
    """Whatever a client sends, the daemon checks it."""
    import numpy as np

    config = write_config(tmp_path)
    with daemon(config) as process:
        process.told("READY=1")
        settings = load(config).config
        for slots, experts in (
            (np.full((1, 2, 2), 99, np.int32), 4),
            (np.full((1, 2, 2), -1, np.int32), 4),
            (np.zeros((0, 0, 0), np.int32), 0),
            (np.zeros((1, 1, 1), np.int32), 2**40),
        ):
            reply = call(
                settings, wire.Place("x", experts, slots), who="alice", why="a test", patience_s=30
            )
            assert isinstance(reply, wire.Refused), reply
        assert process.popen.poll() is None


@pytest.mark.slow
def test_who_may_not_is_refused_and_told_who_may() -> None:
    if os.getuid():
        pytest.skip("not root: another user cannot be tried")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        config = write_config(folder)
        with daemon(config) as process:
            process.told("READY=1")
            socket = folder / "control.sock"
            assert socket.stat().st_mode & 0o777 == 0o600
            done = subprocess.run(
                [sys.executable, "-c", KNOCK, f"ipc://{socket}"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert "this user may not write to" in done.stdout
            assert "control.socket_mode" in done.stdout


def test_a_reply_to_another_question_is_refused(tmp_path: Path) -> None:
    import threading

    with zmq.Context() as context, context.socket(zmq.ROUTER) as odd:
        odd.setsockopt(zmq.LINGER, 0)
        odd.bind(f"ipc://{tmp_path}/control.sock")

        def answer() -> None:
            peer, *_ = odd.recv_multipart()
            odd.send_multipart([peer, *wire.REPLY.encode(wire.Done("x"), 9)])

        helper = threading.Thread(target=answer, daemon=True)
        helper.start()
        with pytest.raises(RemoteProtocolError, match="request 9"):
            ask(write_config(tmp_path), 30.0)
        helper.join()
