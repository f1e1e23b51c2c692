"""Topics of real text: present on this machine, repeatable, and different from one another."""

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from eplbd.demo.text import TOPIC_TOKENS, TOPICS, read_topic
from eplbd.errors import ConfigError

VOCABULARY = 4096


def test_topics_are_full_repeatable_and_unlike() -> None:
    ids = {topic.name: read_topic(topic, VOCABULARY) for topic in TOPICS}
    assert len(ids) >= 4
    share = {}
    for topic in TOPICS:
        found = ids[topic.name]
        assert found.dtype == np.int64
        assert found.size == TOPIC_TOKENS
        assert found.min() >= 0
        assert found.max() < VOCABULARY
        np.testing.assert_array_equal(found, read_topic(topic, VOCABULARY))
        share[topic.name] = np.bincount(found, minlength=VOCABULARY) / found.size
    names = [topic.name for topic in TOPICS]
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        moved = np.abs(share[name] - share[following]).sum() / 2
        assert moved > 0.2, f"{name} and {following} share their words"


def test_prose_is_documentation_without_code(tmp_path: Path) -> None:
    (tmp_path / "pydoc_data").mkdir()
    words = "word " * 12_000
    (tmp_path / "pydoc_data/topics.py").write_text(
        f'identifier = 1\ntopics = {{"a": "{words}\\n"}}\n', encoding="utf-8"
    )
    prose = next(topic for topic in TOPICS if topic.prose)
    assert set(read_topic(prose, VOCABULARY, tmp_path)) == {read_word("word")}


def read_word(word: str) -> int:
    return crc32(word.encode()) % VOCABULARY


def test_a_machine_without_the_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds 0 tokens of topic 'code'"):
        read_topic(TOPICS[0], VOCABULARY, tmp_path)
