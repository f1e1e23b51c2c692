"""What this node is to others, as configured: its key, its address, and whom it trusts.

Owns the reading of `[cluster]` at a start, where anything wrong is refused. Must not know sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eplbd.config import Balance, Config
from eplbd.core.cluster import Address
from eplbd.runtime.keys import KeyPair, Trust, demand_somebody, read_pair, read_trust

CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""Where a service manager leaves what it hands over to a service alone (systemd.exec(5))."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node is to others. address: what they are told of it."""

    pair: KeyPair
    address: Address
    listen: str
    trust: Trust


def identity(config: Config, environment: Mapping[str, str]) -> Identity | None:
    """Read `[cluster]`; None where the node is alone.

    Raises:
        ConfigError: The key or the trust directory is not as it must be.
    """
    cluster = config.cluster
    if not cluster.listen:
        return None
    credentials = environment.get(CREDENTIALS)
    pair = read_pair(Path(cluster.key_file), Path(credentials) if credentials else None)
    folder = Path(cluster.trust_dir)
    trust = read_trust(folder)
    demand_somebody(trust, folder, pair.public)
    address = Address(cluster.advertise or cluster.listen, pair.public.decode())
    return Identity(pair, address, cluster.listen, trust)


def described(known: Identity, balance: Balance) -> Iterator[str]:
    """Lines for whoever checks a configuration; balance: what of it ends at this node."""
    yield f"other nodes reach this one at {known.address.endpoint}, public key {known.address.key}"
    for key, name in known.trust.names.items():
        own = ", this node itself" if key == known.pair.public else ""
        yield f"trusted: {name}, public key {key.decode()}{own}"
    if balance.rollout != "together" or balance.share_heat:
        yield (
            "balance.rollout and balance.share_heat are among groups that this daemon leads: "
            "replicas led on other nodes move when they need to, on their own heat"
        )
