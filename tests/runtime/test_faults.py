"""What policies did wrong is kept, one line for each, and never stands in anybody's way."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eplbd.core.events import RememberFault
from eplbd.runtime.faults import FILE, SENTENCE_CHARS, read_faults, sentence, write_faults

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no such thing\n'


def fault(detail: str, policy: str = "mine", outcome: str = "raised") -> RememberFault:
    return RememberFault(policy, outcome, detail)


def test_the_newest_is_kept_and_all_are_counted(tmp_path: Path) -> None:
    write_faults(tmp_path, {"mine": fault("first"), "yours": fault("other", "yours", "timeout")})
    write_faults(tmp_path, {"mine": fault(TRACEBACK)})
    found = read_faults(tmp_path)
    assert (found["mine"].reason, found["mine"].faults) == ("ValueError: no such thing", 2)
    assert (found["yours"].reason, found["yours"].faults) == ("other", 1)
    assert datetime.now(UTC) - found["mine"].at < timedelta(minutes=1)
    assert str(found["yours"]).endswith("timeout: other")
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("detail", "line"),
    [
        (TRACEBACK, "ValueError: no such thing"),
        (f"cannot start\n{TRACEBACK}", "cannot start: ValueError: no such thing"),
        ("no answer within 1 s: killed\nloading numba", "no answer within 1 s: killed"),
        ("\n\n  invalid: layer 0  \nmore", "invalid: layer 0"),
        ("", "-"),
        ("x" * 1000, "x" * (SENTENCE_CHARS - 1) + "…"),
    ],
)
def test_one_sentence_is_kept(detail: str, line: str) -> None:
    assert sentence(detail) == line


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert read_faults(tmp_path) == {}
    assert read_faults(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"mine": 3}', b"\xff"])
def test_a_damaged_file_is_as_none_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert read_faults(tmp_path) == {}
    write_faults(tmp_path, {"mine": fault("again")})
    assert read_faults(tmp_path)["mine"].reason == "again"


def test_what_cannot_be_written_leaves_what_there_was(tmp_path: Path) -> None:
    write_faults(tmp_path, {"mine": fault("first")})
    (tmp_path / f"{FILE}.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_faults(tmp_path, {"mine": fault("second")})
    assert read_faults(tmp_path)["mine"].reason == "first"


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(OSError, match="directory"):
        write_faults(tmp_path, {"mine": fault("first")})
