"""Bundles on their way out and in: numbered, split where too large, refused where not new."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from eplbd.core import messages as m
from eplbd.core.cluster import NODE, Entry, NodeHeat
from eplbd.core.events import Note
from eplbd.runtime.bundles import GARBLED, REPLAYED, TOO_LARGE, VERSION, Bundles, Way
from eplbd.runtime.complaints import LINES_MAX, Complaints

KEY, OTHER = b"k" * 40, b"o" * 40
REASONS = (GARBLED, VERSION, REPLAYED, TOO_LARGE)


class End:
    """A daemon's bundles, with what it complained of."""

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.notes: list[Note] = []
        self.complaints = Complaints(REASONS, self.notes.append)
        self.bundles = Bundles(max_bytes, self.complaints)

    def packed(
        self, way: Way, entries: Sequence[Entry] = (), key: bytes = KEY
    ) -> list[list[bytes]]:
        return [
            [bytes(frame) for frame in frames]
            for frames, _ in self.bundles.packed(way, key, entries)
        ]

    def opened(self, frames: Sequence[bytes], way: Way, key: bytes = KEY) -> list[Entry] | None:
        found = self.bundles.opened(way, key, "node-a", frames)
        return None if found is None else [*found]

    def refused(self) -> dict[str, int]:
        return {reason: count for reason, count in self.complaints.counts.items() if count}


def pulse(rank: int, forward: int = 7) -> Entry:
    return Entry("g", rank, 3, m.Pulse(forward))


def heat() -> Entry:
    steps = np.ones((2, 4), np.int64)
    node = NodeHeat(
        1, 0, "decode", np.arange(2, dtype=np.int32), np.ones((2, 4, 3, 2), np.uint8),
        steps, steps.astype(np.int32), np.zeros((2, 4), np.bool_),
    )  # fmt: skip
    return Entry("g", NODE, 0, node)


def test_what_one_packs_the_other_opens() -> None:
    relay, leader = End(), End()
    (frames,) = relay.packed(Way.UP, [pulse(4), pulse(5)])
    found = leader.opened(frames, Way.UP)
    assert found is not None
    assert [(e.group, e.rank, e.seq, e.message) for e in found] == [
        ("g", 4, 3, m.Pulse(7)),
        ("g", 5, 3, m.Pulse(7)),
    ]
    (frames,) = leader.packed(Way.DOWN)
    assert relay.opened(frames, Way.DOWN) == []
    assert not relay.notes
    assert not leader.notes


def test_one_way_does_not_go_the_other() -> None:
    relay, leader = End(), End()
    (frames,) = relay.packed(Way.UP, [pulse(4)])
    assert leader.opened(frames, Way.DOWN) == [], "what agents say is nothing that a leader says"
    assert leader.refused() == {GARBLED: 1}


def test_a_bundle_is_never_taken_twice() -> None:
    relay, leader = End(), End()
    one, two = (relay.packed(Way.UP)[0] for _ in range(2))
    assert leader.opened(two, Way.UP) == []
    for again in (two, one, one):
        assert leader.opened(again, Way.UP) is None
    assert leader.refused() == {REPLAYED: 3}
    assert [note.fields["reason"] for note in leader.notes] == [REPLAYED], "said once"
    assert leader.opened(one, Way.UP, OTHER) == [], "the key that was proved says who it is"
    assert leader.opened(one, Way.DOWN) == [], "and each way is counted by itself"


def test_a_restarted_daemon_counts_anew_and_the_former_life_is_over() -> None:
    leader = End()
    former, latter = End(), End()
    early, late = (former.packed(Way.UP)[0] for _ in range(2))
    assert leader.opened(early, Way.UP) == []
    assert leader.opened(latter.packed(Way.UP)[0], Way.UP) == []
    assert leader.opened(late, Way.UP) is None
    assert leader.opened(latter.packed(Way.UP)[0], Way.UP) == []


def test_an_old_version_is_told_from_noise() -> None:
    leader = End()
    old = msgspec.msgpack.encode({"wire": 0})
    assert leader.opened([old], Way.UP) is None
    assert leader.opened([b"\xc1"], Way.UP) is None
    assert leader.opened([], Way.UP) is None
    assert leader.refused() == {VERSION: 1, GARBLED: 2}
    said = leader.notes[0]
    assert (said.level, said.event, said.fields["node"]) == ("warning", "bundle refused", "node-a")
    assert "upgrade the other daemon" in str(said.fields["detail"])


def test_what_is_too_large_for_one_bundle_goes_in_more() -> None:
    relay, leader = End(max_bytes=900), End()
    entries = [Entry("g", rank, 1, m.Bye(f"{rank}" * 100)) for rank in range(8)]
    made = relay.packed(Way.UP, entries)
    assert len(made) > 1
    ranks = [e.rank for frames in made for e in leader.opened(frames, Way.UP) or ()]
    assert ranks == list(range(8))
    assert not relay.notes


def test_a_message_that_is_too_large_by_itself_costs_itself_alone() -> None:
    relay, leader = End(max_bytes=900), End()
    entries = [pulse(0), Entry("g", 1, 1, m.Bye("x" * 2_000)), pulse(2)]
    made = relay.packed(Way.UP, entries)
    ranks = [e.rank for frames in made for e in leader.opened(frames, Way.UP) or ()]
    assert ranks == [0, 2]
    assert relay.refused() == {TOO_LARGE: 1}


def test_what_is_counted() -> None:
    relay, leader = End(), End()
    for frames, entries in relay.bundles.packed(Way.UP, KEY, [heat()]):
        relay.bundles.sent(Way.UP, frames, entries)
        leader.opened([bytes(frame) for frame in frames], Way.UP)
    sent, got = relay.bundles.statistics(), leader.bundles.statistics()
    assert (sent.sent, sent.received) == ({"up": 1, "down": 0}, {"up": 0, "down": 0})
    assert sent.sent_bytes["up"] == got.received_bytes["up"] > sent.heat_bytes
    assert sent.heat_bytes == 2 * 4 + 2 * 4 * 3 * 2 + 2 * 4 * (8 + 4 + 1)
    assert got.heat_bytes == 0


def test_strangers_cause_no_more_lines_than_are_good() -> None:
    end = End()
    for key in range(10 * LINES_MAX):
        end.complaints.add(GARBLED, key, "bundle refused")
    assert end.complaints.counts[GARBLED] == 10 * LINES_MAX
    assert len(end.notes) == LINES_MAX
    end.complaints.begin_anew()
    end.complaints.add(GARBLED, 0, "bundle refused")
    assert len(end.notes) == LINES_MAX + 1
