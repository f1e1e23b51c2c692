"""What all tests share: the event loop, the recorded traces, the hypothesis profiles.

Fixtures of one part live beside that part's tests.
"""

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent

# The same examples on every run: a red build is never a matter of luck. To look for new ones:
# HYPOTHESIS_PROFILE=explore. Deadlines and that health check trip over a busy machine, not a bug.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "explore",
    settings.get_profile("repeatable"),
    derandomize=False,
    max_examples=2_000,
    print_blob=True,
)
# A developer's loop: `make check`.
settings.register_profile("quick", settings.get_profile("repeatable"), max_examples=15)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


SLOW = re.compile(r"^pytestmark = (?:\[[^]]*)?pytest\.mark\.slow\b", re.MULTILINE)
"""A module that says this has no test for those who leave the slow ones out."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import nothing that has only slow tests where these are left out: torch takes seconds."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return bool(SLOW.search(collection_path.read_text())) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The chaos suite last: its group of ranks serves until the end, and would slow all others."""
    items.sort(key=lambda item: "chaos" in item.path.parts)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The daemon runs on asyncio alone: pyzmq has no other loop."""
    return "asyncio"


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """Recorded expert heat: `$EPLBD_SHARED/traces`, or those of `shared` beside the checkout."""
    shared = Path(os.environ.get("EPLBD_SHARED") or REPOSITORY.parent / "shared")
    traces = shared / "traces"
    if not traces.is_dir():
        pytest.skip(f"no recorded traces in {traces}: set EPLBD_SHARED to the folder above them")
    return traces
