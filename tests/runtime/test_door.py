"""The door to other nodes: who is let in, who is not, and who is put out again."""

from __future__ import annotations

import errno
import functools
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import zmq
import zmq.asyncio

from eplbd.errors import ConfigError
from eplbd.runtime.curve import monitored
from eplbd.runtime.door import ATTEMPTS, OTHERS, PLAIN, SHUT, UNKNOWN, Bound, Door, open_door
from eplbd.runtime.keys import KeyPair
from eplbd.runtime.link import Sent
from eplbd.runtime.uplink import CLOSED
from tests.runtime.nodes import (
    MIB,
    Dialled,
    Opened,
    dialled,
    free_endpoint,
    knocking,
    new_pair,
    opened,
    say,
    trusting,
    until,
)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def linked(one: KeyPair, two: KeyPair) -> AsyncIterator[tuple[Opened, Dialled, Dialled]]:
    """A door, and the uplinks of the two that it trusts."""
    async with (
        opened(trusting(one, two)) as leader,
        dialled(leader.address, one) as first,
        dialled(leader.address, two) as second,
    ):
        await until(lambda: first.link.linked and second.link.linked, "both are linked")
        yield leader, first, second


async def test_frames_go_both_ways_under_the_key_that_was_proved() -> None:
    one, two = new_pair(), new_pair()
    async with linked(one, two) as (leader, first, second):
        assert first.link.send([b"from one", b"", b"\0\1"]) is Sent.QUEUED
        assert second.link.send([b"from two"]) is Sent.QUEUED
        await until(lambda: len(leader.letters) == 2, "both were heard")
        assert leader.heard(one.public) == [[b"from one", b"", b"\0\1"]]
        assert leader.heard(two.public) == [[b"from two"]]
        assert leader.door.send(one.public, [b"to", memoryview(b"one")]) is Sent.QUEUED
        await until(lambda: first.letters, "the answer came")
        assert first.letters == [[b"to", b"one"]]
        assert not second.letters
        assert leader.door.send(new_pair().public, [b"to nobody"]) is Sent.UNREACHABLE
        assert not leader.refused


@pytest.mark.slow
async def test_an_unknown_key_is_refused_and_taken_once_it_is_known() -> None:
    stranger = new_pair()
    async with opened(trusting(new_pair())) as leader, dialled(leader.address, stranger) as link:
        await until(lambda: leader.refused, "it was refused")
        assert set(leader.refused) == {(UNKNOWN, stranger.public)}
        await until(lambda: "does not trust this node" in link.link.reason, "it knows why")
        assert link.link.send([b"anything"]) is Sent.UNREACHABLE
        leader.door.admit(trusting(stranger))
        await until(lambda: link.link.linked, "it tried again")
        assert link.link.send([b"now"]) is Sent.QUEUED
        await until(lambda: leader.heard(stranger.public), "it was heard")
        assert leader.heard(stranger.public) == [[b"now"]]


async def test_a_withdrawn_key_is_cut_off_at_once_and_nobody_else_for_long() -> None:
    gone, stays = new_pair(), new_pair()
    async with linked(gone, stays) as (leader, first, second):
        first.link.send([b"before"])
        await until(lambda: leader.heard(gone.public), "it was heard")
        leader.door.admit(trusting(stays))
        assert leader.door.send(gone.public, [b"nothing more"]) is not Sent.QUEUED
        for _ in range(20):
            first.link.send([b"after"])
            await anyio.lowlevel.checkpoint()
        await until(lambda: "does not trust" in first.link.reason, "the first was put out")

        def heard() -> bool:
            second.link.send([b"still here"])
            return bool(leader.heard(stays.public))

        await until(heard, "the second is back")
        assert leader.heard(gone.public) == [[b"before"]]
        assert leader.door.send(gone.public, [b"nothing more"]) is Sent.UNREACHABLE
        assert first.letters == []
        assert leader.door.send(stays.public, [b"an order"]) is Sent.QUEUED
        await until(lambda: second.letters, "the second obeys")


async def test_doors_that_are_opened_one_after_the_other_all_let_in_whom_they_trust() -> None:
    """In one loop, where each has the descriptors of the one that was closed before."""
    pairs = [new_pair() for _ in range(3)]
    for _ in range(6):
        async with opened(trusting(*pairs)) as leader:
            with ExitStack() as stack:
                for pair in pairs:
                    knocker = stack.enter_context(knocking(leader.address, pair))
                    await say(knocker, [b"here"])
                    await until(functools.partial(leader.heard, pair.public), "it was let in")
            assert not leader.refused


async def test_nobody_takes_anothers_route_by_its_name() -> None:
    """An identity is chosen by whoever connects: it must not lead another's orders astray."""
    honest, rogue = new_pair(), new_pair()
    async with opened(trusting(honest, rogue)) as leader:
        with ExitStack() as stack:
            first = stack.enter_context(knocking(leader.address, honest, identity=b"relay"))
            await say(first, [b"honest"])
            await until(lambda: leader.heard(honest.public), "the honest one was heard")
            second = stack.enter_context(knocking(leader.address, rogue, identity=b"relay"))
            for _ in range(20):
                try:
                    second.send_multipart([b"rogue"], zmq.NOBLOCK)
                except zmq.Again:
                    await anyio.sleep(0.01)
            assert leader.door.send(honest.public, [b"orders"]) is Sent.QUEUED
            await until(lambda: first.poll(0), "the orders went to whom they were for")
            assert first.recv_multipart() == [b"orders"]
            assert not second.poll(0)
            assert leader.heard(honest.public) == [[b"honest"]]


IN_PLAIN_TEXT = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
"""A greeting of ZMTP 3.1 (RFC 37): signature, version, mechanism, as-server and filler."""


async def test_plain_text_and_another_servers_key_are_refused() -> None:
    known = new_pair()
    async with opened(trusting(known)) as leader:
        with ExitStack() as stack:
            plain = stack.enter_context(knocking(leader.address, None))
            # libzmq hangs up when it reads the answer, sometimes before it was read itself.
            patient = stack.enter_context(socket.create_connection(_host_port(leader)))
            patient.sendall(IN_PLAIN_TEXT)
            await until(lambda: (PLAIN, b"") in leader.refused, "plain text was refused")
            astray = stack.enter_context(
                knocking(leader.address, known, server_key=new_pair().public)
            )
            await until(lambda: (OTHERS, b"") in leader.refused, "the wrong key was refused")
            for knocker in (plain, astray):
                with pytest.raises(zmq.Again):
                    knocker.send_multipart([b"x"], zmq.NOBLOCK)
        assert not leader.letters


async def test_a_frame_beyond_the_cap_ends_the_connection_and_not_the_door() -> None:
    large, small = new_pair(), new_pair()
    async with opened(trusting(large, small)) as leader:
        with (
            knocking(leader.address, large) as first,
            knocking(leader.address, small) as second,
        ):
            await say(first, [bytes(MIB + 1)])
            await say(second, [b"small"])
            await until(lambda: leader.heard(small.public), "the honest one was heard")
            assert not leader.heard(large.public)


async def test_without_an_authority_nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of libzmq is the opposite."""
    monkeypatch.setattr("eplbd.runtime.door._Authority.start", lambda _: None)
    known = new_pair()
    async with opened(trusting(known)) as leader, dialled(leader.address, known) as link:
        await until(lambda: link.link.reason == CLOSED, "the door stayed shut")
        assert link.reasons == [CLOSED]
        assert not leader.letters


async def test_an_address_that_is_taken_or_not_ours_is_refused() -> None:
    async with opened(trusting()) as leader:
        for endpoint in (leader.endpoint, "tcp://192.0.2.1:9477"):
            with (
                zmq.asyncio.Context() as context,
                pytest.raises(ConfigError, match=r"cluster\.listen: cannot bind tcp://"),
                open_door(context, endpoint, new_pair(), MIB, lambda *_: None),
            ):
                pass


async def test_a_sandbox_that_libzmq_would_not_survive_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RestrictAddressFamilies= without AF_NETLINK; libzmq would abort the process."""

    def forbidden() -> list[tuple[int, str]]:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "if_nameindex", forbidden)
    with (
        zmq.asyncio.Context() as context,
        pytest.raises(ConfigError, match=r"eplbd share cluster"),
        open_door(context, free_endpoint(), new_pair(), MIB, lambda *_: None),
    ):
        pass


@pytest.mark.slow
async def test_an_address_that_is_lost_is_said_once_and_tried_until_it_is_there() -> None:
    refused: list[tuple[str, bytes]] = []
    tried = 0
    with zmq.asyncio.Context() as context:

        @contextmanager
        def bound() -> Iterator[Bound]:
            nonlocal tried
            tried += 1
            if 1 < tried < 2 * ATTEMPTS:
                raise ConfigError("somebody else listens there")
            with context.socket(zmq.ROUTER) as router, monitored(router, 0) as monitor:
                yield router, monitor

        with closing(Door(bound, lambda *why: refused.append(why), anyio.sleep_forever)) as door:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(door.run, lambda _: None)
                door.admit(trusting(new_pair()))
                await anyio.wait_all_tasks_blocked()
                assert not refused
                door.admit(trusting())
                await until(lambda: tried == 2 * ATTEMPTS, "it is there again")
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
    assert refused == [(SHUT, b"")]


@pytest.mark.slow
async def test_whoever_knocks_and_says_nothing_is_put_out_and_holds_nobody_up() -> None:
    """Each costs a descriptor, and no longer than a handshake may take."""
    relay = new_pair()
    async with opened(trusting(relay)) as leader, dialled(leader.address, relay) as link:
        await until(lambda: link.link.linked, "the honest one is linked")
        before = _descriptors()
        with ExitStack() as stack:
            silent = [
                stack.enter_context(socket.create_connection(_host_port(leader)))
                for _ in range(200)
            ]
            for one in silent[:100]:
                one.sendall(b"\xff" + bytes(8) + b"\x7f\x03")  # a greeting that goes no further
            said = 0

            def ended() -> bool:
                nonlocal said
                said += link.link.send([b"still here"]) is Sent.QUEUED
                return all(_closed(one) for one in silent)

            await until(ended, "all of them were put out")
            await until(lambda: len(leader.letters) >= said, "the honest one was heard meanwhile")
        await until(lambda: _descriptors() <= before + 1, "nothing is left")


def _host_port(opened: Opened) -> tuple[str, int]:
    return "127.0.0.1", int(opened.endpoint.rpartition(":")[2])


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def _closed(connection: socket.socket) -> bool:
    """Whether the other end has closed it; what it said before does not matter."""
    connection.setblocking(False)
    try:
        while connection.recv(4_096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
