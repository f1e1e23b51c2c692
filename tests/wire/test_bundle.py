"""Bundles: whatever goes in comes out, nothing travels twice, and no bytes break the decoder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from eplbd.core import messages as m
from eplbd.core.cluster import NODE, Entry, NodeHeat
from eplbd.core.placement import Placement
from eplbd.core.plan import Plan
from eplbd.core.prepare import write_prepares
from eplbd.core.topology import Topology
from eplbd.errors import LocalProtocolError, RemoteProtocolError
from eplbd.wire.bundle import DOWN, UP, BundleCodec, VersionError
from eplbd.wire.codec import Frame
from eplbd.wire.limits import MAX_BUNDLE_ENTRIES, MAX_REFERRED_BYTES
from eplbd.wire.messages import FROM_AGENT, FROM_LEADER
from tests.wire.strategies import assert_same, example, messages_of

MUTATIONS = 700


def _heat(counts: str = "uint16") -> NodeHeat:
    return NodeHeat(
        epoch=3,
        first_forward=16,
        phase="decode",
        ranks=np.array([1, 4], dtype=np.int32),
        counts=(np.arange(2 * 3 * 2 * 4) % 100).reshape(2, 3, 2, 4).astype(counts),
        routed=np.ones((2, 3), dtype=np.int64),
        tokens=np.ones((2, 3), dtype=np.int32),
        dummy=np.zeros((2, 3), dtype=np.bool_),
    )


def _any_heat() -> st.SearchStrategy[NodeHeat]:
    def of(dtype: str, ndim: int) -> st.SearchStrategy[Any]:
        return npst.arrays(dtype, npst.array_shapes(min_dims=ndim, max_dims=ndim, max_side=3))

    return st.builds(
        NodeHeat,
        epoch=st.integers(0, 9),
        first_forward=st.integers(0, 99),
        phase=st.sampled_from(["prefill", "decode", "mixed"]),
        ranks=of("int32", 1),
        counts=st.sampled_from(["uint8", "uint16", "int32"]).flatmap(lambda name: of(name, 4)),
        routed=of("int64", 2),
        tokens=of("int32", 2),
        dummy=of("bool", 2),
    )


def _entries(table: dict[str, type[Any]], *, heat: bool) -> st.SearchStrategy[list[Entry]]:
    of_rank = st.builds(
        Entry,
        st.sampled_from(["prefill", "decode"]),
        st.integers(0, 1023),
        st.integers(0, 10**6),
        st.sampled_from(sorted(table)).flatmap(lambda tag: messages_of(table[tag])),
    )
    of_node = st.builds(Entry, st.just("decode"), st.just(NODE), st.just(0), _any_heat())
    return st.lists(of_rank | of_node if heat else of_rank, max_size=6)


def _assert_comes_back(codec: BundleCodec[Any], entries: Sequence[Entry]) -> None:
    found = codec.decode([bytes(frame) for frame in codec.encode(7, 9, entries)])
    assert (found.session, found.seq, found.refused) == (7, 9, ())
    for there, here in zip(entries, found.entries, strict=True):
        assert (there.group, there.rank, there.seq) == (here.group, here.rank, here.seq)
        assert_same(there.message, here.message)  # type: ignore[arg-type]  # heat of nodes, too


@given(_entries(FROM_AGENT, heat=True))
def test_what_goes_up_comes_up(entries: list[Entry]) -> None:
    _assert_comes_back(UP, entries)


@given(_entries(dict(FROM_LEADER), heat=False))
def test_what_goes_down_comes_down(entries: list[Entry]) -> None:
    _assert_comes_back(DOWN, entries)


def _size(frames: Sequence[Frame]) -> int:
    return sum(len(frame) for frame in frames)


def test_what_ranks_share_travels_once() -> None:
    """A `Prepare` for a node of eight costs little more than the one of its largest rank."""
    placed = Placement.linear(4, 16, 8, 3)
    rows = placed.slots.copy()
    rows[:, [0, 7]] = rows[:, [7, 0]]
    plan = Plan(placed, Placement(rows, 16), Topology(8, 3, (0,) * 8))
    epoch = plan.next_epoch(32)
    assert epoch is not None
    prepares = write_prepares(epoch, term=1, epoch=1, lane=0)
    entries = [Entry("g", rank, 0, prepare) for rank, prepare in enumerate(prepares)]
    _assert_comes_back(DOWN, entries)
    shared = prepares[0].slots.nbytes + prepares[0].physical.nbytes
    assert (
        _size(DOWN.encode(1, 1, entries)) < 8 * _size(DOWN.encode(1, 1, entries[:1])) - 7 * shared
    )


def test_what_ranks_are_told_alike_is_said_once() -> None:
    beats = [Entry("g", rank, 0, m.Beat(4)) for rank in range(8)]
    assert len(DOWN.encode(1, 1, beats)) == 2


def test_an_empty_bundle_is_a_sign_of_life() -> None:
    assert UP.decode(UP.encode(2**63 - 1, 5)).entries == ()


def test_an_agent_cannot_speak_for_a_node() -> None:
    """And a node has nothing to say but heat."""
    for entry in (Entry("g", 3, 0, _heat()), Entry("g", NODE, 0, m.Bye("x"))):
        found = UP.decode(UP.encode(1, 1, [entry, Entry("g", 0, 1, m.Pulse(1))]))
        assert [e.message for e in found.entries] == [m.Pulse(1)]
        assert "of rank" in found.refused[0]


def test_a_message_of_a_newer_release_costs_itself_alone() -> None:
    newer: BundleCodec[Any] = BundleCodec({"pulse": m.Pulse, "sigh": m.Bye})
    entries = [
        Entry("g", 1, 1, m.Bye("x")),
        Entry("g", 1, 2, m.Pulse(3)),
        Entry("g", 2, 1, m.Bye("x")),
    ]
    found = UP.decode(newer.encode(1, 1, entries))
    assert [e.message for e in found.entries] == [m.Pulse(3)]
    assert found.refused == ("frame 0: expected a tag of this protocol, got 'sigh'",)


def _changed(**values: object) -> list[bytes]:
    """A bundle of a pulse with another envelope."""
    frames = [bytes(frame) for frame in UP.encode(1, 1, [Entry("g", 0, 1, m.Pulse(1))])]
    return [msgspec.msgpack.encode(msgspec.msgpack.decode(frames[0]) | values), *frames[1:]]


@pytest.mark.parametrize(("wire", "which"), [(m.WIRE_VERSION + 1, "this"), (0, "the other")])
def test_another_version_is_told_by_whom_to_upgrade(wire: int, which: str) -> None:
    with pytest.raises(VersionError, match=f"upgrade {which} daemon"):
        UP.decode([msgspec.msgpack.encode({"wire": wire, "else": "unknown"})])
    with pytest.raises(VersionError):
        UP.decode(_changed(wire=wire))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"entries": [[1, 0, 0, [1]]]}, "names no group"),
        ({"entries": [[0, 0, 0, []]]}, "no frame"),
        ({"entries": [[0, 0, 0, [0]]]}, "names frames"),
        ({"entries": [[0, 0, 0, [2]]]}, "names frames"),
        ({"entries": [[0, -2, 0, [1]]]}, "envelope"),
        ({"entries": [[0, 0, 0, [1] * 40]]}, "envelope"),
        ({"entries": [[0, 0, 0, [1]]] * (MAX_BUNDLE_ENTRIES + 1)}, "envelope"),
        ({"groups": ["g" * 300]}, "envelope"),
        ({"session": -1}, "envelope"),
    ],
)
def test_an_envelope_that_lies_is_refused(values: dict[str, object], why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        UP.decode(_changed(**values))


def test_small_bundles_cannot_ask_for_much_work() -> None:
    big = bytes(1 << 20)
    rows = [[0, rank, 0, [1, 2]] for rank in range(MAX_REFERRED_BYTES // len(big) + 1)]
    with pytest.raises(RemoteProtocolError, match="refer to"):
        UP.decode([*_changed(entries=rows), big])


def test_what_no_peer_would_take_is_not_sent() -> None:
    many = [Entry("g", rank, 1, m.Pulse(rank)) for rank in range(100)]
    with pytest.raises(LocalProtocolError, match="at most 600 bytes"):
        UP.encode(1, 1, many, 600)
    for entries in ([Entry("g" * 300, 0, 1, m.Pulse(1))], [Entry("g", 0, -1, m.Pulse(1))]):
        with pytest.raises(LocalProtocolError, match="cannot be sent"):
            UP.encode(1, 1, entries)
    with pytest.raises(LocalProtocolError, match="not a message"):
        UP.encode(1, 1, [Entry("g", 0, 0, m.Beat(1))])


@pytest.mark.parametrize("seed", range(3))
def test_no_bytes_break_the_decoder(seed: int) -> None:
    """Bits flipped, frames cut, doubled, swapped or dropped: taken, in part, or refused."""
    chance = random.Random(seed)
    entries = [Entry("g", 1, 4, example(kind)) for kind in FROM_AGENT.values()]
    whole = [bytes(f) for f in UP.encode(1, 1, [*entries, Entry("g", NODE, 0, _heat())])]
    outcomes = set()
    for _ in range(MUTATIONS):
        frames = list(whole)
        at = chance.choice([0, chance.randrange(len(frames))])
        match chance.randrange(5):
            case 0:
                octets = bytearray(frames[at])
                octets[chance.randrange(len(octets))] ^= 1 << chance.randrange(8)
                frames[at] = bytes(octets)
            case 1:
                frames[at] = frames[at][: chance.randrange(len(frames[at]) + 1)]
            case 2:
                del frames[at]
            case 3:
                frames.insert(at, frames[at])
            case _:
                other = chance.randrange(len(frames))
                frames[at], frames[other] = frames[other], frames[at]
        try:
            found = UP.decode(frames)
        except RemoteProtocolError:
            outcomes.add("refused")
        else:
            outcomes.add("in part" if found.refused else "taken")
    assert outcomes == {"refused", "in part", "taken"}


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=64), max_size=4))
def test_noise_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^bundle: "):
        DOWN.decode(frames)
