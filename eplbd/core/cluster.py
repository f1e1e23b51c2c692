"""Between daemons: the leader's address, ranks behind a relay, and what passes between the two.

The daemon that has a group's rank 0 leads the group; the others relay it: what their ranks say goes
up to the leader, its orders come down. Owns these as values, events and effects. Must not know
sockets nor keys, beyond their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from eplbd.core.fields import array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eplbd.core.messages import FromAgent, FromLeader

# --- values -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where other nodes reach a daemon: `tcp://host:port`, and its public key in z85."""

    endpoint: str
    key: str


@dataclass(frozen=True, slots=True)
class Via:
    """A rank behind a relay, which is named by the public key that it proved to have, z85."""

    relay: bytes
    group: str
    rank: int


Peer: TypeAlias = bytes | Via
"""Who speaks: the identity of a local connection, given by the transport and never trusted for
authority, or a rank behind a relay."""


def relay_of(peer: Peer) -> bytes:
    """Through which relay a rank speaks; empty for one of this node."""
    return b"" if isinstance(peer, bytes) else peer.relay


def shown(peer: Peer) -> str:
    """For a line of the log."""
    return peer.hex() if isinstance(peer, bytes) else f"rank {peer.rank} via {peer.relay.decode()}"


@dataclass(frozen=True, slots=True, eq=False)
class NodeHeat:
    """Heat of some ranks of one node, of the same forwards, under one placement.

    Says what a `HeatReport` of each of the ranks would; from a relay alone, never from an agent.
    """

    epoch: int
    first_forward: int
    phase: str
    ranks: NDArray[np.int32] = array("int32", 1)
    """Ascending, `[r]`."""
    counts: NDArray[np.uint8 | np.uint16 | np.int32] = array(None, 4)
    """`[r, steps, layers, slots_per_rank]` (received) or `[r, steps, layers, slots]` (sent), as the
    narrowest of uint8, uint16 and int32 that holds them all."""
    routed: NDArray[np.int64] = array("int64", 2)
    """`[r, steps]`."""
    tokens: NDArray[np.int32] = array("int32", 2)
    """`[r, steps]`."""
    dummy: NDArray[np.bool_] = array("bool", 2)
    """`[r, steps]`."""


FromRelay: TypeAlias = "FromAgent | NodeHeat"
"""What goes up: what an agent said, or what the relay made of its ranks' heat."""

NODE = -1
"""Rank of an entry that is the node's as a whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One message of a bundle.

    rank: of the agent that said it or is to hear it; `NODE` for `NodeHeat`. seq: the agent's count,
    without the heat that the relay took from it; 0 on the way down, where the relay counts.
    """

    group: str
    rank: int
    seq: int
    message: FromRelay | FromLeader


# --- events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Relayed:
    """At a leader: a bundle came from a relay whose key was proved; maybe without entries."""

    relay: bytes
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class RelayGone:
    """At a leader: the transport has no route to the relay any more, or its key was withdrawn."""

    relay: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Led:
    """At a relay: a bundle came from a leader; maybe without entries."""

    leader: Address
    entries: tuple[Entry, ...] = ()


# --- effects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Nod:
    """At a leader: send the relay a bundle, with whatever else this turn has for it, or empty."""

    relay: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Up:
    """At a relay: send the leader a bundle at once, dialling it first if that was not done yet.

    Without entries it only says that this node lives.
    """

    leader: Address
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class HangUp:
    """At a relay: no group is relayed there any more."""

    leader: Address
