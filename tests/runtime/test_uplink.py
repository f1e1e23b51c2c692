"""The way to a leader: why it does not stand, and that it comes back by itself."""

from __future__ import annotations

import socket

import anyio
import pytest

from eplbd.core.cluster import Address
from eplbd.runtime.link import Sent
from eplbd.runtime.uplink import CLOSED, DENIED, DIALLING, REDIAL_S
from tests.runtime.nodes import dialled, free_endpoint, new_pair, opened, trusting, until

pytestmark = pytest.mark.anyio


async def test_it_stands_as_soon_as_there_is_a_leader() -> None:
    relay, leader = new_pair(), new_pair()
    address = Address(free_endpoint(), leader.public.decode())
    async with dialled(address, relay) as up:
        assert up.link.send([b"x"]) is Sent.UNREACHABLE
        await anyio.sleep(0.2)
        assert (up.link.linked, up.link.reason) == (False, DIALLING)
        async with opened(trusting(relay), address.endpoint, leader):
            await until(lambda: up.link.linked, "it is linked")
        assert up.reasons == [""]


async def test_it_comes_back_to_a_leader_that_was_restarted() -> None:
    relay, leader = new_pair(), new_pair()
    address = Address(free_endpoint(), leader.public.decode())
    async with dialled(address, relay) as up:
        for life in (b"first", b"second"):
            async with opened(trusting(relay), address.endpoint, leader) as door:
                await until(lambda: up.link.linked, "it is linked")
                up.link.send([life])
                await until(lambda: door.letters, "it was heard")
                assert door.heard(relay.public) == [[life]]
            await until(lambda: not up.link.linked, "it noticed that nobody is there")
        assert up.link.send([b"to nobody"]) is Sent.UNREACHABLE


async def test_a_leader_of_another_key_is_not_spoken_to() -> None:
    relay, leader, impostor = new_pair(), new_pair(), new_pair()
    async with opened(trusting(relay), pair=impostor) as door:
        address = Address(door.endpoint, leader.public.decode())
        async with dialled(address, relay) as up:
            await until(lambda: up.link.reason == CLOSED, "it says why")
            assert up.link.send([b"secret"]) is Sent.UNREACHABLE
            assert not door.letters


@pytest.mark.slow
async def test_whatever_else_listens_there_does_not_end_the_attempts() -> None:
    relay, leader = new_pair(), new_pair()
    address = Address(free_endpoint(), leader.public.decode())
    port = int(address.endpoint.rpartition(":")[2])
    async with dialled(address, relay) as up:
        with socket.create_server(("127.0.0.1", port)) as other:
            other.setblocking(False)

            def answered() -> bool:
                try:
                    connection, _ = other.accept()
                except BlockingIOError:
                    return False
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 8)
                return True

            await until(answered, "it knocked at the other's")
        async with opened(trusting(relay), address.endpoint, leader):
            await until(lambda: up.link.linked, "it is linked")


@pytest.mark.slow
async def test_nobody_there_is_said_once_and_not_at_once() -> None:
    address = Address(free_endpoint(), new_pair().public.decode())
    async with dialled(address, new_pair()) as up:
        started = anyio.current_time()
        await until(lambda: up.reasons, "it says so")
        assert anyio.current_time() - started > REDIAL_S
        await anyio.sleep(REDIAL_S)
        assert up.reasons == [DIALLING]


@pytest.mark.slow
async def test_a_denied_relay_says_so_once() -> None:
    relay = new_pair()
    async with opened(trusting()) as door, dialled(door.address, relay) as up:
        await until(lambda: len(door.refused) > 1, "it was denied twice")
        assert up.reasons == [DENIED]
