"""What the demo's tests share: modules that need torch stay out of a run that leaves them out."""

from pathlib import Path

import pytest

_ALL_SLOW = "\npytestmark = pytest.mark.slow\n"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave torch unimported, two seconds, where its tests are deselected anyway."""
    if config.getoption("markexpr") != "not slow" or collection_path.suffix != ".py":
        return None
    return True if _ALL_SLOW in collection_path.read_text(encoding="utf-8") else None
