"""The fuzzer finds nothing in a short run, and it finds what is broken on purpose.

Inputs that it once found are replayed: what was repaired stays so.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from tests.fuzz.dialogue import Said, read, write
from tests.fuzz.targets import TARGETS, target_of

REPOSITORY = Path(__file__).resolve().parents[2]
FOUND = sorted((Path(__file__).parent / "found").iterdir())
FRAMES = 10_000
"""Of each target; a million by `make fuzz`."""
SECONDS = 100.0
GROWTH_KIB = 128 * 1024

fuzzes = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None, reason="atheris is not installed here"
    ),
]

EDITS = {
    "cluster": (
        "eplbd/wire/bundle.py",
        "        if group >= len(envelope.groups) or not indices:",
        "        if not indices:",
    ),
    "decoders": (
        "eplbd/wire/codec.py",
        "    if math.prod(shape) * wire.itemsize != size or (",
        "    if math.prod(shape) * wire.itemsize < size or (",
    ),
    "session": (
        "eplbd/core/report.py",
        "    if heat.phase not in PHASE_BITS:",
        "    if not heat.phase:",
    ),
}
"""By target, a check that is left out: file, what stands there once, what is put in its place."""


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_dialogue_says_is_read_as_written(target: str) -> None:
    phrases = target_of(target).phrases()
    assert read(write(phrases)) == phrases
    assert read(write(phrases)[:-1])[:-1] == phrases[:-1], "cut off, it counts as far as it goes"
    assert read(b"\xff") == [Said(15, ())]


@pytest.mark.parametrize("target", TARGETS)
def test_the_inputs_to_begin_with_are_no_findings(target: str) -> None:
    module = target_of(target)
    assert all(module.take(data) > 0 for data in module.seeds())


def test_a_session_begins_anywhere_in_an_epoch() -> None:
    """Else what lies behind a group's first steps would never be reached."""
    from tests.fuzz.session import moments

    groups = [b.group for doorway in moments() for b in doorway.node.balancers.values()]
    assert len(groups) < len(moments()), "at the beginning there is none"
    assert len({group.leader.phase for group in groups if group.leader}) > 2


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_stays_repaired(path: Path) -> None:
    target, _, _ = path.name.partition("-")
    assert target_of(target).take(path.read_bytes()) > 0


@pytest.mark.parametrize("target", TARGETS)
class TestRuns:
    pytestmark = fuzzes

    def test_a_short_run_finds_nothing(self, target: str, tmp_path: Path) -> None:
        from tests.fuzz.__main__ import fuzz

        outcome = fuzz(target, FRAMES, seed=1, keep=tmp_path, seconds=SECONDS)
        assert outcome.report is not None, f"{outcome.finding}\n{outcome.story}"
        assert outcome.report.frames >= FRAMES
        assert outcome.report.rss_kib - outcome.report.rss_begin_kib < GROWTH_KIB
        begun_with = {write(read(data)) for data in target_of(target).seeds()}
        assert len(outcome.corpus) > len(begun_with), "it learns of inputs that reach further"

    def test_a_check_that_is_left_out_is_found(self, target: str, tmp_path: Path) -> None:
        from tests.fuzz.__main__ import fuzz

        root = tmp_path / "broken"
        for folder in ("eplbd", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignored)
        file, old, new = EDITS[target]
        source = (root / file).read_text()
        assert source.count(old) == 1
        (root / file).write_text(source.replace(old, new))
        outcome = fuzz(target, 50 * FRAMES, seed=1, keep=tmp_path, root=root, seconds=SECONDS)
        assert outcome.report is None
        assert outcome.finding is not None
        assert "RemoteProtocolError" not in outcome.story.splitlines()[-1]
        assert target_of(target).take(outcome.finding.read_bytes()) > 0, "sound sources take it"
