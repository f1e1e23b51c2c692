"""The service manager's end of sd_notify, as a real socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from eplbd.runtime.systemd import Manager


@pytest.fixture(params=["path", "abstract"])
def manager(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, socket.socket]]:
    """`NOTIFY_SOCKET`, and the socket that it names."""
    name = str(tmp_path / "notify") if request.param == "path" else f"\0eplbd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        listening.settimeout(5.0)
        yield name.replace("\0", "@"), listening


def test_words_arrive_in_one_datagram(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    Manager({"NOTIFY_SOCKET": address}).tell(READY=1, STATUS="epoch 41 settled, 16/16 ranks")
    assert listening.recv(4096) == b"READY=1\nSTATUS=epoch 41 settled, 16/16 ranks"


def test_a_reload_carries_its_time_in_the_same_datagram(
    manager: tuple[str, socket.socket],
) -> None:
    address, listening = manager
    before_us = time.monotonic_ns() // 1_000
    Manager({"NOTIFY_SOCKET": address}).reloading()
    words = dict(line.split("=") for line in listening.recv(4096).decode().splitlines())
    assert words.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert before_us <= int(words["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1_000


def test_a_status_of_two_lines_cannot_say_another_word(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    Manager({"NOTIFY_SOCKET": address}).tell(STATUS="frozen\nMAINPID=1")
    assert listening.recv(4096) == b"STATUS=frozen MAINPID=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}])
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    manager = Manager(environment)
    manager.tell(READY=1)
    assert manager.watchdog_s == 0.0


def test_a_manager_that_does_not_read_holds_nobody_up(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    started = time.monotonic()
    for _ in range(1_000):
        Manager({"NOTIFY_SOCKET": address}).tell(STATUS="x" * 1_000)
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_watchdog_is_ours_or_nobodys(environment: dict[str, str], watchdog_s: float) -> None:
    assert Manager(environment).watchdog_s == watchdog_s


@pytest.mark.anyio
async def test_time_is_asked_for_again_and_again_until_it_is_over(
    manager: tuple[str, socket.socket],
) -> None:
    address, listening = manager
    listening.settimeout(0.0)
    heard: list[bytes] = []
    with anyio.fail_after(30.0):
        async with anyio.create_task_group() as tasks:
            with Manager({"NOTIFY_SOCKET": address}).asked_to_wait(tasks, more_s=0.03):
                while len(heard) < 3:
                    await anyio.wait_readable(listening)
                    heard.append(listening.recv(4096))
    assert set(heard) == {b"EXTEND_TIMEOUT_USEC=30000"}


@pytest.mark.anyio
async def test_a_block_that_fails_fails_as_itself() -> None:
    async with anyio.create_task_group() as tasks:
        with pytest.raises(ValueError, match="mine"), Manager({}).asked_to_wait(tasks):
            raise ValueError("mine")
