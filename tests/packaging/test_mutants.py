"""Every mutant still finds what it breaks: told in a second here, not when all else has passed."""

from pathlib import Path

import pytest

from tests import mutants
from tests.chaos import mutants as chaos

REPOSITORY = Path(__file__).resolve().parents[2]
EDITS = [
    *((mutant.name, (mutant.file, mutant.old, mutant.new)) for mutant in mutants.MUTANTS),
    *((mutant.name, edit) for mutant in chaos.MUTANTS for edit in mutant.edits),
]


@pytest.mark.parametrize(("name", "edit"), EDITS, ids=lambda part: str(part)[:60])
def test_it_applies(name: str, edit: tuple[str, str, str]) -> None:
    file, old, new = edit
    source = (REPOSITORY / file).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{name}: {file} reads otherwise now"
    assert new != old
