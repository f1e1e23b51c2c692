"""Real text that is on any machine, as topics of token ids: the standard library's own files.

Owns which files make a topic and how they become ids. It must not know torch, steps or ranks.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from eplbd.errors import ConfigError

TOPIC_TOKENS = 40_000
"""Tokens kept of a topic: more than a minute of steps consumes, read in a few hundredths of a
second."""
_LEAST_TOKENS = 10_000
_TOKEN = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")


@dataclass(frozen=True, slots=True)
class Topic:
    """Files of one kind of text below the standard library's folder, as glob patterns.

    prose: only the long strings of the files count: their documentation, without the code.
    """

    name: str
    patterns: tuple[str, ...]
    prose: bool = False


TOPICS = (
    Topic("code", ("asyncio/*.py", "http/*.py", "socket.py", "ssl.py")),
    Topic("tables", ("encodings/cp*.py", "encodings/iso8859*.py")),
    Topic("prose", ("pydoc_data/topics.py", "*.py"), prose=True),
    Topic("markup", ("html/*.py", "xml/*/*.py", "email/*.py", "json/*.py")),
)
"""In the order in which traffic visits them: neighbours differ as much as four kinds of text of one
library can."""


def read_topic(topic: Topic, vocabulary: int, library: Path | None = None) -> NDArray[np.int64]:
    """`[tokens]` int64 ids below `vocabulary` of a topic's words, numbers and single signs.

    library: folder of the sources, by default this interpreter's standard library. Raises
    ConfigError where it holds too little of the topic.
    """
    folder = library or Path(sysconfig.get_path("stdlib"))
    ids: dict[str, int] = {}
    found: list[int] = []
    for text in _texts(topic, folder):
        for word in _TOKEN.findall(text):
            if word not in ids:
                ids[word] = crc32(word.encode()) % vocabulary
            found.append(ids[word])
        if len(found) >= TOPIC_TOKENS:
            break
    if len(found) < _LEAST_TOKENS:
        raise ConfigError(
            f"demo: {folder} holds {len(found)} tokens of topic {topic.name!r} in "
            f"{', '.join(topic.patterns)}, expected {_LEAST_TOKENS}; run a Python whose standard "
            "library is installed as source files"
        )
    return np.array(found[:TOPIC_TOKENS], dtype=np.int64)


def _texts(topic: Topic, folder: Path) -> Iterator[str]:
    seen: set[Path] = set()
    for pattern in topic.patterns:
        for path in sorted(folder.glob(pattern)):
            if path in seen:
                continue
            seen.add(path)
            text = path.read_text(encoding="utf-8", errors="replace")
            yield "\n".join(_long_strings(text)) if topic.prose else text


def _long_strings(source: str) -> Iterator[str]:
    """Strings of several lines, decoded."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            yield node.value
