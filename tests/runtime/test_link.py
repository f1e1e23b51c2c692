"""The workers' door, with real sockets: who may bind, what arrives, what is never waited for."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import zmq
from blockbuster import blockbuster_ctx

from eplbd.errors import ConfigError
from eplbd.runtime.link import (
    BATCH,
    BATCH_BYTES,
    HIGH_WATER,
    LARGE_BYTES,
    Link,
    Packet,
    Sent,
    open_link,
)
from tests.runtime.conftest import PATIENCE_S, Connect

pytestmark = pytest.mark.anyio

MIB = 1 << 20


def _open(endpoint: str) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(open_link(endpoint, mode=0o660, max_message_bytes=MIB))
    return stack


async def _received(link: Link, count: int) -> list[Packet]:
    packets: list[Packet] = []
    with anyio.fail_after(PATIENCE_S):
        while len(packets) < count:
            packets += await link.receive()
    return packets


async def _until(happened: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not happened():  # noqa: ASYNC110 - libzmq's own thread has no event to wait for
            await anyio.sleep(0.001)


# --- frames in, frames out ----------------------------------------------------------------------


async def test_frames_go_both_ways(endpoint: str, connect: Connect) -> None:
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        worker = connect(b"r0")
        worker.send_multipart([b"hello", b"", b"\0\1"])
        assert await _received(link, 1) == [(b"r0", [b"hello", b"", b"\0\1"])]
        with blockbuster_ctx("eplbd"):
            assert link.send(b"r0", [b"welcome", memoryview(b"xy")]) is Sent.QUEUED
        assert await anyio.to_thread.run_sync(worker.recv_multipart) == [b"welcome", b"xy"]
        assert (link.statistics().received, link.statistics().received_bytes) == (1, 9)
        assert link.statistics().sent == 1


async def test_what_has_arrived_comes_in_one_batch(endpoint: str, connect: Connect) -> None:
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        worker = connect(b"r0")
        for index in range(2 * BATCH):
            worker.send(b"%d" % index)
            if not index:
                assert await _received(link, 1)
        sizes: list[int] = []
        seen: list[bytes | memoryview] = [b"0"]
        with anyio.fail_after(PATIENCE_S):
            while len(seen) < 2 * BATCH:
                batch = await link.receive()
                sizes.append(len(batch))
                seen += [frames[0] for _, frames in batch]
        assert seen == [b"%d" % index for index in range(2 * BATCH)]
        assert max(sizes) > 1
        assert max(sizes) <= BATCH


async def test_a_batch_of_large_messages_is_short(endpoint: str, connect: Connect) -> None:
    """Between two batches the ticks come: large messages must not put them off."""
    most = 1 + BATCH_BYTES // MIB
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        worker, sizes = connect(b"r0"), [0]
        with anyio.fail_after(PATIENCE_S):
            while max(sizes) < most:
                for _ in range(HIGH_WATER):
                    worker.send(b"\0" * MIB)
                seen = 0
                while seen < HIGH_WATER:
                    sizes.append(len(await link.receive()))
                    seen += sizes[-1]
        assert max(sizes) == most


async def test_a_large_frame_is_not_copied(endpoint: str, connect: Connect) -> None:
    """Taking it must be cheaper than writing it, or a flood of such fills the memory."""
    heat = bytes(LARGE_BYTES) + b"\1"
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        connect(b"r0").send_multipart([b"small", heat])
        ((_, frames),) = await _received(link, 1)
    assert [type(frame) for frame in frames] == [bytes, memoryview]
    assert frames == [b"small", heat], "and is whole after the link is closed"


async def test_cancelling_a_receive_loses_nothing(endpoint: str, connect: Connect) -> None:
    """The loop of the daemon cancels one wherever a tick falls due."""
    total = 500
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        worker = connect(b"r0")
        seen: list[bytes | memoryview] = []

        def speak() -> None:
            for index in range(total):
                worker.send(b"%d" % index)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, speak)
            with anyio.fail_after(PATIENCE_S):
                while len(seen) < total:
                    with anyio.move_on_after(0.0002):
                        seen += [frames[0] for _, frames in await link.receive()]
        assert seen == [b"%d" % index for index in range(total)]


# --- a peer that is away, stuck or hostile ------------------------------------------------------


async def test_a_message_to_nobody_is_unreachable(endpoint: str) -> None:
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        assert link.send(b"nobody", [b"x"]) is Sent.UNREACHABLE
        assert link.statistics().unreachable == 1


async def test_a_worker_that_left_is_unreachable(endpoint: str, connect: Connect) -> None:
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        worker = connect(b"r0")
        worker.send(b"hello")
        await _received(link, 1)
        worker.close(linger=0)
        await _until(lambda: link.send(b"r0", [b"x"]) is Sent.UNREACHABLE)


async def test_a_worker_that_does_not_read_costs_what_fits_and_no_wait(
    endpoint: str, connect: Connect
) -> None:
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        stuck, well = (connect(name) for name in (b"stuck", b"well"))
        stuck.setsockopt(zmq.RCVHWM, 1)
        for worker in (stuck, well):
            worker.send(b"hello")
        await _received(link, 2)
        with blockbuster_ctx("eplbd"):
            await _until(lambda: link.send(b"stuck", [b"\0" * MIB]) is Sent.DROPPED)
        assert link.statistics().sent == HIGH_WATER
        assert link.send(b"well", [b"x"]) is Sent.QUEUED
        assert await anyio.to_thread.run_sync(well.recv) == b"x"


async def test_a_restarted_worker_of_the_same_identity_is_heard(
    endpoint: str, connect: Connect
) -> None:
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        connect(b"r0").send(b"old")
        await _received(link, 1)
        new = connect(b"r0")
        new.send(b"new")
        assert await _received(link, 1) == [(b"r0", [b"new"])]
        with anyio.fail_after(PATIENCE_S):
            link.send(b"r0", [b"x"])
            assert await anyio.to_thread.run_sync(new.recv) == b"x"


async def test_an_oversized_frame_disconnects_its_sender_alone(
    endpoint: str, connect: Connect
) -> None:
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        hostile, well = (connect(name) for name in (b"hostile", b"well"))
        hostile.send(b"\0" * (MIB + 1))
        well.send(b"x")
        assert await _received(link, 1) == [(b"well", [b"x"])]


async def test_what_is_no_zmq_is_not_heard(endpoint: str, connect: Connect) -> None:
    with (
        open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link,
        socket.socket(socket.AF_UNIX) as raw,
    ):
        raw.connect(endpoint.removeprefix("ipc://"))
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        worker = connect(b"r0")
        worker.send(b"x")
        assert await _received(link, 1) == [(b"r0", [b"x"])]


# --- the endpoint -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_the_socket_has_the_configured_mode(tmp_path: Path, mode: int) -> None:
    with open_link(f"ipc://{tmp_path}/s", mode=mode, max_message_bytes=MIB):
        status = (tmp_path / "s").stat().st_mode
        assert stat.S_ISSOCK(status)
        assert stat.S_IMODE(status) == mode
        assert stat.S_IMODE((tmp_path / "s.lock").stat().st_mode) == 0o600


async def test_a_second_daemon_is_refused_and_the_first_serves_on(
    endpoint: str, connect: Connect
) -> None:
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB) as link:
        with pytest.raises(ConfigError, match=rf"another eplbd .process {os.getpid()}. holds"):
            _open(endpoint)
        worker = connect(b"r0")
        worker.send(b"x")
        assert await _received(link, 1) == [(b"r0", [b"x"])]


async def test_a_second_daemon_is_refused_even_if_somebody_removed_the_lock(
    endpoint: str, tmp_path: Path
) -> None:
    with open_link(endpoint, mode=0o660, max_message_bytes=MIB):
        (tmp_path / "w.sock.lock").unlink()
        with pytest.raises(ConfigError, match=r"something listens on"):
            _open(endpoint)


async def test_the_endpoint_is_free_again_after_the_block(endpoint: str) -> None:
    for _ in range(3):
        _open(endpoint).close()


HOLD = """
import asyncio, sys
from eplbd.runtime.link import open_link
async def main():
    with open_link(sys.argv[1], mode=0o660, max_message_bytes=1 << 20):
        print("bound", flush=True)
        await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.fixture
def killed(endpoint: str) -> str:
    """The endpoint of a daemon that was killed while it held it."""
    with subprocess.Popen([sys.executable, "-c", HOLD, endpoint], stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == b"bound\n"
            with pytest.raises(ConfigError, match=f"process {first.pid}"):
                _open(endpoint)
        finally:
            first.kill()
    assert Path(endpoint.removeprefix("ipc://")).is_socket()
    return endpoint


@pytest.mark.slow
async def test_a_killed_daemons_socket_is_taken_over(killed: str, connect: Connect) -> None:
    with open_link(killed, mode=0o660, max_message_bytes=MIB) as link:
        worker = connect(b"r0")
        worker.send(b"x")
        assert await _received(link, 1) == [(b"r0", [b"x"])]


async def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path, endpoint: str) -> None:
    (tmp_path / "w.sock").write_text("precious")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        _open(endpoint)
    assert (tmp_path / "w.sock").read_text() == "precious"


async def test_another_programs_socket_is_left_alone(tmp_path: Path, endpoint: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "w.sock"))
        other.listen(0)
        with pytest.raises(ConfigError, match=r"something listens on"):
            _open(endpoint)


@pytest.mark.parametrize("place", ["missing/w.sock", "file/w.sock"])
async def test_an_endpoint_that_cannot_be_says_why(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"daemon.socket: cannot lock .* the directory must exist"
    ):
        _open(f"ipc://{tmp_path}/{place}")


async def test_a_path_that_zmq_refuses_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"daemon.socket: cannot bind"):
        _open(f"ipc://{tmp_path}/{'x' * 120}")
