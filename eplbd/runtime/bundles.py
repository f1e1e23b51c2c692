"""Bundles as they leave for other nodes and come from them: numbered, counted, never taken twice.

Owns the session of this daemon's life and the number of each bundle in it. Must not know sockets,
nor what a bundle's entries mean.
"""

from __future__ import annotations

import enum
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eplbd.core.cluster import Entry, NodeHeat
from eplbd.errors import LocalProtocolError, RemoteProtocolError
from eplbd.runtime.complaints import Complaints
from eplbd.runtime.replay import Replays
from eplbd.wire.bundle import DOWN, UP, BundleCodec, VersionError
from eplbd.wire.codec import Frame


class Way(enum.StrEnum):
    """Which way a bundle goes."""

    UP = "up"
    """From a relay to a leader."""
    DOWN = "down"


# Any: the way decides which messages.
_CODEC: dict[Way, BundleCodec[Any]] = {Way.UP: UP, Way.DOWN: DOWN}

GARBLED, VERSION, REPLAYED = "garbled", "wire version", "replayed"
TOO_LARGE = "too large"


@dataclass(frozen=True, slots=True)
class BundleStatistics:
    """Counts since the start, by way."""

    sent: Mapping[str, int]
    sent_bytes: Mapping[str, int]
    received: Mapping[str, int]
    received_bytes: Mapping[str, int]
    heat_bytes: int
    """Of heat that was sent up."""


class Bundles:
    """All bundles of one life of a daemon."""

    def __init__(self, max_bytes: int, complaints: Complaints) -> None:
        self._max_bytes, self._complaints = max_bytes, complaints
        self._session = secrets.randbits(63)
        self._seqs: Counter[tuple[Way, bytes]] = Counter()
        self._replays = {way: Replays() for way in Way}
        self._sent, self._sent_bytes, self._received, self._received_bytes = (
            Counter(dict.fromkeys(map(str, Way), 0)) for _ in range(4)
        )
        self._heat_bytes = 0

    def packed(
        self, way: Way, key: bytes, entries: Sequence[Entry]
    ) -> Iterator[tuple[list[Frame], Sequence[Entry]]]:
        """One bundle for the holder of `key`, as frames; more, where one would be too large.

        An entry that is too large by itself is left out and complained of.
        """
        number = self._seqs[way, key] + 1
        try:
            frames = _CODEC[way].encode(self._session, number, entries, self._max_bytes)
        except LocalProtocolError as error:
            if len(entries) < 2:
                self._complaints.add(TOO_LARGE, key, "bundle not sent", detail=str(error))
                return
            middle = len(entries) // 2
            yield from self.packed(way, key, entries[:middle])
            yield from self.packed(way, key, entries[middle:])
        else:
            self._seqs[way, key] = number
            yield frames, entries

    def sent(self, way: Way, frames: Sequence[Frame], entries: Sequence[Entry]) -> None:
        """Count a bundle that the transport took."""
        self._sent[way] += 1
        self._sent_bytes[way] += sum(len(frame) for frame in frames)
        for entry in entries:
            heat = entry.message
            if isinstance(heat, NodeHeat):
                arrays = heat.ranks, heat.counts, heat.routed, heat.tokens, heat.dummy
                self._heat_bytes += sum(array.nbytes for array in arrays)

    def opened(
        self, way: Way, key: bytes, name: str, frames: Sequence[bytes]
    ) -> tuple[Entry, ...] | None:
        """The entries of a bundle that the holder of `key` sent; None where it is refused."""
        self._received[way] += 1
        self._received_bytes[way] += sum(map(len, frames))
        try:
            bundle = _CODEC[way].decode(frames, self._max_bytes)
        except RemoteProtocolError as error:
            reason = VERSION if isinstance(error, VersionError) else GARBLED
            self._refuse(reason, key, name, str(error))
            return None
        replayed = self._replays[way].refused(key, bundle.session, bundle.seq)
        if replayed:
            self._refuse(REPLAYED, key, name, replayed)
            return None
        for fault in bundle.refused:
            self._refuse(GARBLED, key, name, fault)
        entries: tuple[Entry, ...] = bundle.entries
        return entries

    def statistics(self) -> BundleStatistics:
        """Counts so far."""
        return BundleStatistics(
            sent=dict(self._sent),
            sent_bytes=dict(self._sent_bytes),
            received=dict(self._received),
            received_bytes=dict(self._received_bytes),
            heat_bytes=self._heat_bytes,
        )

    def _refuse(self, reason: str, key: bytes, name: str, detail: str) -> None:
        self._complaints.add(
            reason, key, "bundle refused", node=name, key=key.decode(), detail=detail
        )
