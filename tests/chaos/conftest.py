"""The laboratories of the chaos suite; built when first needed, one for all scenarios of a kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.chaos.lab import Lab


def opened(lab: Lab) -> Iterator[Lab]:
    """A laboratory for as long as its fixture lives; what was measured is printed at its end."""
    try:
        yield lab
    finally:
        lab.close()
        sys.stdout.write(_table(lab))


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three ranks, each of which routes its own tokens."""
    yield from opened(Lab(tmp_path_factory.mktemp("lab")))


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
