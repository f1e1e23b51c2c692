"""Conditions with a deadline: nothing here sleeps and hopes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

DEADLINE_S = 20.0
"""Only a test that fails waits so long."""


def until(
    happened: Callable[[], object], what: str, turn: Callable[[], object] | None = None
) -> None:
    """Return once `happened`; call `turn` meanwhile, which must take its time, or wait a little."""
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        if turn is None:
            time.sleep(0.0005)
        else:
            turn()


@contextmanager
def aside(work: Callable[[], object], what: str) -> Iterator[None]:
    """Run `work` in a thread, which must have ended soon after the block has; raise what it did."""
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (raised again, in the test's thread)
            trouble.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), f"hangs: {what}"
    if trouble:
        raise trouble[0]
