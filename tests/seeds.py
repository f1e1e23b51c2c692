"""Seeds of a sweep: a tenth for the loop of a developer, all of them for the whole run."""

from __future__ import annotations

import pytest


def sweep(count: int) -> list[object]:
    """`count` seeds as parameters of a test, most of them marked slow."""
    few = max(1, count // 10)
    return [*range(few), *(pytest.param(n, marks=pytest.mark.slow) for n in range(few, count))]
