"""Conditions with a deadline: nothing in the chaos suite sleeps and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_S = 0.005


def until(
    happened: Callable[[], bool],
    deadline_s: float,
    what: str | Callable[[], str],
    poll_s: float = POLL_S,
) -> None:
    """Return once `happened`; fail with `what` if it has not within `deadline_s`."""
    deadline = time.monotonic() + deadline_s
    while not happened():
        if time.monotonic() >= deadline:
            text = what if isinstance(what, str) else what()
            raise AssertionError(f"did not happen within {deadline_s} s: {text}")
        time.sleep(poll_s)
