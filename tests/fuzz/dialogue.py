"""What a fuzzer's input is: messages of several peers, one after the other, as bytes and back.

Owns the form. Any bytes are some dialogue, so that no mutation of them is wasted. A message is one
byte (the mouth that says it, and how many frames follow), then per frame its length, 2 bytes
little-endian, and its bytes; what is cut off by the end counts as far as it goes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

MOUTHS = 16
FRAMES_MAX = 15
FRAME_BYTES_MAX = (1 << 16) - 1

_LENGTH = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Said:
    """One message: the mouth is a number whose meaning is the target's."""

    mouth: int
    frames: tuple[bytes, ...]


def read(data: bytes) -> list[Said]:
    """The dialogue that these bytes are."""
    dialogue, place = list[Said](), 0
    while place < len(data):
        mouth, count = data[place] % MOUTHS, data[place] // MOUTHS
        place += 1
        frames = []
        for _ in range(count):
            if place + _LENGTH.size > len(data):
                break
            (length,) = _LENGTH.unpack_from(data, place)
            place += _LENGTH.size
            frames.append(data[place : place + length])
            place += length
        dialogue.append(Said(mouth, tuple(frames)))
    return dialogue


def write(dialogue: Iterable[Said]) -> bytes:
    """The bytes of a dialogue; of what is longer than the form allows, the beginning."""
    pieces = []
    for said in dialogue:
        frames = said.frames[:FRAMES_MAX]
        pieces.append(bytes([said.mouth % MOUTHS + MOUTHS * len(frames)]))
        for frame in frames:
            kept = frame[:FRAME_BYTES_MAX]
            pieces += [_LENGTH.pack(len(kept)), kept]
    return b"".join(pieces)
