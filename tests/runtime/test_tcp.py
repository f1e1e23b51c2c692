"""Addresses between nodes: what is one, and to which nobody can connect."""

from __future__ import annotations

import pytest
import zmq

from eplbd.tcp import is_key, is_wildcard, tcp_host


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("tcp://10.0.0.1:9477", "10.0.0.1"),
        ("tcp://node-a.rack.example:1", "node-a.rack.example"),
        ("tcp://[fd00::1]:65535", "fd00::1"),
        ("tcp://[0:0::0]:9477", "::"),
        ("tcp://*:9477", "*"),
        ("tcp://10.0.0.1:0", ""),
        ("tcp://10.0.0.1:65536", ""),
        ("tcp://10.0.0.1", ""),
        ("tcp://:9477", ""),
        ("tcp://fd00::1:9477", ""),
        ("tcp://[fd00::x]:9477", ""),
        ("tcp://eth0;10.0.0.1:9477", ""),
        ("tcp://user@host:9477", ""),
        ("ipc:///run/eplbd/w.sock", ""),
        ("tcp://10.0.0.1:9477\n", ""),
        ("", ""),
    ],
)
def test_the_host_of_an_endpoint_is_told_only_of_the_one_form(endpoint: str, host: str) -> None:
    assert tcp_host(endpoint) == host


def test_every_spelling_of_all_addresses_is_one() -> None:
    spellings = ("*", "0.0.0.0", "[::]", "[0:0:0:0:0:0:0:0]")  # noqa: S104 - named to be refused
    assert all(is_wildcard(f"tcp://{host}:1") for host in spellings)
    assert not is_wildcard("tcp://127.0.0.1:1")
    assert not is_wildcard("nonsense")


def test_what_libzmq_makes_is_a_key() -> None:
    public, secret = zmq.curve_keypair()
    assert is_key(public.decode())
    assert is_key(secret.decode())
    assert not is_key(public.decode()[1:])
    assert not is_key(public.decode() + "\n")
    assert not is_key("~" * 40)
