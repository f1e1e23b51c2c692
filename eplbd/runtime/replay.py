"""Whether a bundle is new: no bundle of another node is taken twice, nor an old one later.

Owns what was heard last of each key. CURVE keeps a network from repeating what it saw; this keeps a
process that holds a trusted key from it, and tells when two hold the same. Must not know bundles.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

SESSIONS = 64
"""Lives of one peer that are remembered: to repeat what is older takes as many restarts."""


@dataclass(slots=True)
class _Heard:
    session: int
    seq: int
    ended: deque[int] = field(default_factory=lambda: deque(maxlen=SESSIONS))


class Replays:
    """What was heard of each key; there are as many as were ever trusted."""

    def __init__(self) -> None:
        self._heard: dict[bytes, _Heard] = {}

    def refused(self, key: bytes, session: int, seq: int) -> str:
        """Why this bundle is not taken; empty where it is, and then it counts as heard.

        session: drawn anew by each life of a daemon. seq: its count of bundles to us, from 1.
        """
        heard = self._heard.get(key)
        if heard is None:
            self._heard[key] = _Heard(session, seq)
            return ""
        if session == heard.session:
            if seq <= heard.seq:
                return f"number {seq} came after {heard.seq}"
            heard.seq = seq
            return ""
        if session in heard.ended:
            return "of a session that has ended: it is repeated, or two daemons have one key"
        heard.ended.append(heard.session)
        heard.session, heard.seq = session, seq
        return ""
