"""Addresses between nodes: `tcp://HOST:PORT`, and to which of them nobody can connect.

Owns the form. Must not know who listens there, and looks no name up.
"""

from __future__ import annotations

import ipaddress
import re

TCP_FORM = "tcp://HOST:PORT, HOST a name, an IPv4 address or an IPv6 address in brackets"

_PARTS = re.compile(r"tcp://(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\[\]:/@;]+)):(?P<port>\d{1,5})")
_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


def tcp_host(endpoint: str) -> str:
    """The host of an endpoint of this form, without brackets; empty where it is of another."""
    match = _PARTS.fullmatch(endpoint)
    if match is None or not 0 < int(match["port"]) < 2**16:
        return ""
    if match["v6"] is None:
        return match["host"]
    try:
        return str(ipaddress.IPv6Address(match["v6"]))
    except ValueError:
        return ""


def is_wildcard(endpoint: str) -> bool:
    """Whether this is every address of a machine: one may listen there, not connect to it."""
    return tcp_host(endpoint) in {"*", "0.0.0.0", "::"}  # noqa: S104 - named to be refused


def is_key(text: str) -> bool:
    """Whether this can be a public key: 40 characters of z85."""
    return _KEY.fullmatch(text) is not None
