"""The daemon in this process, with real sockets, files and policy child."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest
from blockbuster import blockbuster_ctx

from eplbd.core import messages as m
from eplbd.wire.messages import AGENT, LEADER
from tests.runtime.conftest import Connect
from tests.runtime.inside import serving
from tests.runtime.workers import Worker, drive, group, welcomed

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # the policy child is a process


async def _drive(workers: Sequence[Worker], happened: Callable[[], bool], what: str) -> None:
    await anyio.to_thread.run_sync(drive, workers, happened, what)


def _junk() -> list[list[bytes]]:
    """Messages that no worker sends, each refused for a reason of its own."""
    pulse = bytes(AGENT.encode(m.Pulse(1), 1)[0])
    chance = random.Random(3)
    return [
        [b""],
        [b"", b"", b""],
        [b"\xc1" * 100],
        [pulse, b"extra"],
        [pulse[:-1]],
        [bytes(LEADER.encode(m.Beat(99), 1)[0])],
        [bytes(LEADER.encode(m.Abort(1, 1, "die"), 1)[0])],
        [b"\x83\xa3tag\xa5pulse\xa3seq\x01\xa4body" + b"\x91" * 50_000],
        [b"\x83\xa3tag\xa5pulse\xa3seq\x01\xa4body\xdf\xff\xff\xff\xff"],
        [msgspec.msgpack.encode({"tag": "heat", "seq": 1, "body": {}, "arrays": [["int32", [9]]]})],
        [chance.randbytes(70_000)],
        *([chance.randbytes(chance.randrange(1, 200))] for _ in range(200)),
    ]


async def test_hostile_frames_are_counted_and_change_nothing(
    tmp_path: Path, connect: Connect
) -> None:
    async with serving(tmp_path) as served:
        workers = group(connect)
        await _drive(workers, lambda: welcomed(workers), "both were welcomed")
        before = served.statistics()
        hostile, junk = connect(b"hostile"), _junk()
        for frames in junk:
            hostile.send_multipart(frames)
        await _drive(
            workers,
            lambda: served.statistics().node.garbled == len(junk),
            f"{len(junk)} messages were refused",
        )
        after = served.statistics()
        assert (after.node.groups, after.node.workers) == (1, 2)
        assert before.node.garbled == 0
        assert after.node.gaps == after.node.repeats == 0
        assert all(worker.agent.connected for worker in workers)
        assert {worker.agent.term for worker in workers} == {1}
        assert not any(isinstance(said, m.Refused) for said in workers[0].heard)


async def test_a_hostile_member_hurts_itself_alone(tmp_path: Path, connect: Connect) -> None:
    """Junk on a session's own connection: its next honest message is taken."""
    async with serving(tmp_path) as served:
        workers = group(connect)
        await _drive(workers, lambda: welcomed(workers), "both were welcomed")
        for frames in _junk():
            workers[0].socket.send_multipart(frames)
        await _drive(workers, lambda: served.statistics().node.garbled > 200, "refused")
        heard = len(workers[0].heard)
        await _drive(workers, lambda: len(workers[0].heard) > heard, "rank 0 hears beats")
        assert welcomed(workers)


async def test_a_flood_does_not_stop_the_clock(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path) as served:
        workers = group(connect)
        await _drive(workers, lambda: welcomed(workers), "both were welcomed")
        hostile, flooding = connect(b"flood"), True

        def flood() -> None:
            while flooding:
                hostile.send(b"\xc1" * 100)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, flood)
            begun = sum(isinstance(said, m.Beat) for said in workers[1].heard)
            await _drive(
                workers,
                lambda: sum(isinstance(said, m.Beat) for said in workers[1].heard) > begun + 3,
                "beats went on",
            )
            flooding = False
        assert served.statistics().node.garbled > 1_000
        assert welcomed(workers)


async def test_a_peer_that_is_not_known_is_greeted(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path):
        stranger = connect(b"stranger")
        stranger.send_multipart(AGENT.encode(m.Pulse(5), 1))
        frames = await anyio.to_thread.run_sync(stranger.recv_multipart)
        assert LEADER.decode(frames) == (1, m.Greet())


async def test_messages_to_a_peer_are_numbered(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path):
        stranger = connect(b"stranger")
        for seq in range(1, 5):
            stranger.send_multipart(AGENT.encode(m.Pulse(5), seq))
            frames = await anyio.to_thread.run_sync(stranger.recv_multipart)
            assert LEADER.decode(frames)[0] == seq


async def test_a_worker_that_vanished_is_lost(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path):
        workers = group(connect)
        await _drive(workers, lambda: welcomed(workers), "both were welcomed")
        workers[1].socket.close(linger=0)
        lost = b'"event":"rank lost"'
        await _drive(
            workers[:1], lambda: lost in (tmp_path / "log").read_bytes(), "rank 1 was lost"
        )
        assert b'"reason":"unreachable"' in (tmp_path / "log").read_bytes()


async def test_the_loop_never_blocks(tmp_path: Path, connect: Connect) -> None:
    """From the first worker to the last beat, policy questions and heat included."""
    async with serving(tmp_path, balance__interval_s=0.05, balance__min_steps=16) as served:
        with blockbuster_ctx("eplbd"):
            workers = group(connect)
            await _drive(workers, lambda: welcomed(workers), "both were welcomed")

            def ended() -> bool:
                for worker in workers:
                    worker.say(worker.heat(1))
                return b'"event":"cycle ended"' in (tmp_path / "log").read_bytes()

            await _drive(workers, ended, "a rebalance was considered")
        assert served.statistics().node.suspended is False
