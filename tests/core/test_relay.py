"""What a relay makes of what its ranks say, apart from faults (those are `test_nodes`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from eplbd.core import messages as m
from eplbd.core.cluster import Address, Up
from eplbd.core.messages import Standing
from eplbd.core.relay import Relay
from eplbd.core.settings import Settings
from eplbd.wire.bundle import UP

LEADER = Address("tcp://leader:1", "key")


def stands(digest: str) -> m.Stands:
    slots = np.zeros((4, 64, 9), dtype=np.int32)
    return m.Stands(1, 0, digest, Standing.IDLE, 0, 7, 0, slots)


def test_a_map_that_several_ranks_hold_goes_up_once() -> None:
    hello = m.Hello(1, 1, "g", "1", 8, 64, "node1", 4, 64, 9, 0, 1, "model")
    relay = Relay(hello, LEADER, Settings(), now=0.0)
    for rank in (8, 9, 10):
        relay.hello(f"r{rank}".encode(), 1, replace(hello, rank=rank))
    relay.drain()
    for rank, digest in ((8, "one"), (9, "one"), (10, "other")):
        relay.heard(rank, 2, stands(digest))
    entries = [entry for up in relay.drain() if isinstance(up, Up) for entry in up.entries]
    frames = UP.encode(1, 1, entries)
    maps = [frame for frame in frames if len(frame) == 4 * 64 * 9 * 4]
    assert len(maps) == 2
    assert [
        entry.message.digest
        for entry in UP.decode(frames).entries
        if isinstance(entry.message, m.Stands)
    ] == ["one", "one", "other"]
