"""How a dialogue is changed: by message, by frame, by what a header says, and last by byte.

Owns the changes. libFuzzer's own know bytes alone: of those, next to none would get past the first
header. Must not know what any message means, nor which target it is for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tests.fuzz.dialogue import MOUTHS, Said, read, write

Bytewise = Callable[[bytes, int], bytes]
"""libFuzzer's mutation of some bytes, to at most so many."""

LEAVES: tuple[object, ...] = (
    0, 1, 2, 3, 5, 7, 255, 256, 2**15, 2**16, 2**16 + 1, 2**24, 2**31 - 1, 2**31, 2**32, 2**53,
    2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31), -(2**63), 0.0, -0.0, 0.5, 1e9, 1e308, -1.0,
    math.inf, -math.inf, math.nan, "", "a", "é", "\0", "x" * 257, "x" * 4097, "../../x", "\ud7ff",
    b"", b"\xff", None, True, False, [], {}, [[]], {"": None},
)  # fmt: skip
"""What is put in the place of any value."""

DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32",
    "float64", "object", "<U1", "",
)  # fmt: skip
WIDTHS = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4}
SIDES = (0, 1, 2, 3, 4, 5, 8, 16, 128, 129, 2**16, 2**31, 2**32, 2**63 - 1)
OCTETS = (b"\0", b"\1", b"\x7f", b"\x80", b"\xff")
ARRAY_BYTES_MAX = 4_096
DIALOGUE_MESSAGES_MAX = 256
DEEP = 400


class Mutator:
    """Changes dialogues; `phrases` are messages that may be said in any of them."""

    def __init__(self, phrases: Sequence[Said], bytewise: Bytewise) -> None:
        self._phrases, self._bytewise = phrases, bytewise
        self._chance = random.Random(0)

    def __call__(self, data: bytes, max_bytes: int, seed: int) -> bytes:
        """The same change for the same seed."""
        self._chance = random.Random(seed)
        dialogue = read(data)
        for _ in range(1 + self._chance.randrange(3)):
            self._change(dialogue)
        return write(dialogue)[:max_bytes]

    def _change(self, dialogue: list[Said]) -> None:
        chance = self._chance
        if not dialogue or chance.random() < 0.15:
            dialogue.insert(chance.randint(0, len(dialogue)), chance.choice(self._phrases))
            return
        place = chance.randrange(len(dialogue))
        said = dialogue[place]
        match chance.randrange(12):
            case 0:
                del dialogue[place]
            case 1 if len(dialogue) < DIALOGUE_MESSAGES_MAX:
                dialogue[place:place] = [said] * chance.choice((1, 2, 8))
            case 2:
                other = chance.randrange(len(dialogue))
                dialogue[place], dialogue[other] = dialogue[other], said
            case 3:
                dialogue[place] = Said(chance.randrange(MOUTHS), said.frames)
            case 4:
                frames = list(said.frames)
                frames.insert(chance.randint(0, len(frames)), b"")
                dialogue[place] = Said(said.mouth, tuple(frames))
            case 5 if said.frames:
                frames = list(said.frames)
                del frames[chance.randrange(len(frames))]
                dialogue[place] = Said(said.mouth, tuple(frames))
            case 6 | 7 if said.frames:
                dialogue[place] = self._bytes(said)
            case _ if said.frames:
                dialogue[place] = self._meaning(said)

    def _bytes(self, said: Said) -> Said:
        """Change the bytes of one frame."""
        frames = list(said.frames)
        place = self._chance.randrange(len(frames))
        frame = frames[place]
        if self._chance.random() < 0.5 or not frame:
            frames[place] = self._bytewise(frame, len(frame) + 64)
        else:
            at = self._chance.randrange(len(frame))
            run = self._chance.choice(OCTETS) * self._chance.choice((1, 2, 4, 8, len(frame)))
            frames[place] = (frame[:at] + run + frame[at + len(run) :])[: len(frame)]
        return Said(said.mouth, tuple(frames))

    def _meaning(self, said: Said) -> Said:
        """Change what a header says, and perhaps let the frames follow it."""
        frames = list(said.frames)
        # The header of a request stands behind its caller.
        place = min(self._chance.choice((0, 0, 0, 1)), len(frames) - 1)
        try:
            header = msgspec.msgpack.decode(frames[place])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._bytes(said)
        if isinstance(header, dict) and header.get("arrays") and self._chance.random() < 0.3:
            self._redeclare(header["arrays"], frames, place)
        else:
            header = self._replaced(header)
        try:
            frames[place] = msgspec.msgpack.encode(header)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError):
            return self._bytes(said)
        return Said(said.mouth, tuple(frames))

    def _redeclare(self, arrays: Any, frames: list[bytes], place: int) -> None:  # noqa: ANN401 - decoded
        """Give one array another dtype or shape; its frame's bytes fit it more often than not."""
        chance = self._chance
        try:
            index = chance.randrange(len(arrays))
            dtype, shape = arrays[index]
            if chance.random() < 0.3:
                dtype = chance.choice(DTYPES)
            side = min(chance.choice((0, 0, 1, 2)), len(shape))
            if side == len(shape) or chance.random() < 0.1:
                shape = [*shape, chance.choice(SIDES)][chance.randrange(2) :]
            else:
                near = shape[side] + chance.choice((-1, 1, 7))
                shape[side] = chance.choice((0, near, near, chance.choice(SIDES)))
            arrays[index] = [dtype, shape]
            size = math.prod(shape) * WIDTHS.get(dtype, 8)
        except (TypeError, ValueError, LookupError, OverflowError):
            return
        behind = place + 1 + index
        if size <= ARRAY_BYTES_MAX and behind < len(frames) and chance.random() < 0.8:
            frame = frames[behind]
            frames[behind] = (frame + chance.choice(OCTETS) * size)[: max(size, 0)]

    def _replaced(self, node: Any) -> Any:  # noqa: ANN401 - any decoded value
        """The same tree with one thing in it changed."""
        chance = self._chance
        if isinstance(node, dict) and node and chance.random() < 0.9:
            key = chance.choice(list(node))
            match chance.randrange(12):
                case 0:
                    del node[key]
                case 1:
                    node[chance.choice(("beyond", "seq", "tag", "", "body", "arrays"))] = node[key]
                case _:
                    node[key] = self._replaced(node[key])
            return node
        if isinstance(node, list) and node and chance.random() < 0.8:
            place = chance.randrange(len(node))
            node[place] = self._replaced(node[place])
            return node
        return self._leaf(node)

    def _leaf(self, node: object) -> object:
        chance = self._chance
        if isinstance(node, int) and not isinstance(node, bool) and chance.random() < 0.4:
            return node + chance.choice((-2, -1, 1, 2, 16, 50))
        if chance.random() < 0.02:
            deep: object = node
            for _ in range(DEEP):
                deep = [deep]
            return deep
        return chance.choice(LEAVES)
