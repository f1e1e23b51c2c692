"""How large anything on the wire may be, and why.

Owns the caps. A cap is part of the protocol: a sender that exceeds one is at fault and is told so.
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 1 << 26
"""All frames of one message together, unless `session.max_message_bytes` says otherwise. Honest
ones are far smaller: heat of 16 steps x 58 layers x 9 slots takes 34 kB, a `Prepare` of all 58
layers x 256 experts with 16 replicas of the hottest 1.3 MB. What needs the room is heat of the sent
kind over a thousand ranks (34 MB)."""

MAX_HEADER_BYTES = 1 << 16
"""Frame 0. Names and figures only: whatever is larger belongs into an array frame."""

MAX_BUNDLE_ENTRIES = 1 << 14
"""Messages of one bundle: a turn of the leader's loop, or of a relay's, has a few for each rank."""

MAX_BUNDLE_GROUPS = 64
"""As many as one daemon leads or relays."""

MAX_ENVELOPE_BYTES = 1 << 19
"""Frame 0 of a bundle: thirty bytes for each entry."""

MAX_REFERRED_BYTES = 1 << 30
"""Frames of a bundle, each as often as entries name it: a `Prepare` that shares 1.3 MB takes 95 MB
for the 72 ranks of a large node. It bounds the work that a small bundle may cause."""

MAX_NAME_CHARS = 256
"""A name: group, node, incarnation, digest, phase."""

MAX_TEXT_CHARS = 4096
"""A sentence for the operator: `reason`. The sender cuts it, the receiver refuses a longer one."""

MAX_INT = (1 << 63) - 1
"""Integers of a body are counts: zero up to what an int64 holds."""

MAX_FLOAT = 1e9
"""Floats of a body are seconds: finite, zero up to thirty years."""

MAX_DIMENSIONS = 8
"""Where a field leaves its number of dimensions open (a policy's answer)."""

DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
)
"""Everything that an array frame may hold. Never `object`: unpickling is running code."""
