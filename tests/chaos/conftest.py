"""The laboratories of the chaos suite; built when first needed, one for all scenarios of a kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.chaos.lab import Lab


def _opened(lab: Lab) -> Iterator[Lab]:
    try:
        yield lab
    finally:
        lab.close()
        sys.stdout.write(_table(lab))


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three ranks, each of which routes its own tokens."""
    yield from _opened(Lab(tmp_path_factory.mktemp("lab")))


@pytest.fixture(scope="package")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two ranks, each of which recomputes the routing of all tokens."""
    yield from _opened(Lab(tmp_path_factory.mktemp("replicated"), ranks=2, dispatch="replicated"))


def _table(lab: Lab) -> str:
    """What was measured, for `pytest -s`."""
    bound = lab.bound
    head = (
        f"\nbound {bound.gap_s():.3f} s = 2 x {bound.baseline_s:.3f} s + {bound.register_s:.3f} s "
        f"+ slack; silence {bound.silence_s:.3f} s\n"
        "| scenario | gap s | bound s | hook s | epoch |\n| --- | --- | --- | --- | --- |\n"
    )
    rows = (
        f"| {m.scenario} | {m.gap_s:.3f} | {m.bound_s:.3f} | {m.hook_s:.4f} | {m.epoch} |"
        for m in lab.measured
    )
    return head + "\n".join(rows) + "\n"
