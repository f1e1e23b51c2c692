"""A local process that may connect says as much as it can; the group does not notice.

Memory is measured at the daemon's process. What bounds it: groups and peers that are kept are
limited in number, a pipe by its mark, a message by its size.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.lab import RECOVERY_S, TEST_S, Lab
from tests.chaos.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1 << 20
GROWTH_BYTES = 1536 * MIB
"""A fifth of what the service unit grants (MemoryMax); the floods could send that in seconds."""
BOOKS_BYTES = 512 * MIB
"""Of these; the default is more, and how much of it is used is the books' own test."""
INTERVAL_S = 1.0
"""Between two looks at the heat of a group. The laboratory's tenth of a second is for one group; a
flood brings sixteen, each of which is looked at as often as it is."""
SILENCE_S = 3.0
"""As by default: the laboratory's own is shorter than a burst of large messages takes to read on a
machine that is busy with the flood itself."""
EPOCHS = 2

nightly = pytest.mark.skipif(
    not os.environ.get("EPLBD_NIGHTLY"), reason="nightly: another kind of flood"
)


class Flood:
    """The flooding process, and what the daemon's process takes meanwhile."""

    def __init__(self, kind: str, lab: Lab) -> None:
        assert lab.daemon.popen is not None
        self.daemon = psutil.Process(lab.daemon.popen.pid)
        self.before = self.peak = self.daemon.memory_info().rss
        command = [sys.executable, "-m", "tests.chaos.flood", kind, lab.daemon.socket]
        # Of two cores the ranks need theirs; what is tried is the daemon, not the scheduler.
        self.popen = subprocess.Popen(["nice", *command], cwd=REPOSITORY, stdout=subprocess.PIPE)
        assert self.popen.stdout is not None
        os.set_blocking(self.popen.stdout.fileno(), False)
        self.sent = 0

    def look(self) -> int:
        """How many messages it has sent so far."""
        self.weigh()
        assert self.popen.stdout is not None
        if told := (self.popen.stdout.read() or b"").split():
            self.sent = int(told[-1])
        return self.sent

    def weigh(self) -> None:
        self.peak = max(self.peak, self.daemon.memory_info().rss)

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@contextlib.contextmanager
def flooded(kind: str, lab: Lab) -> Iterator[Flood]:
    """The block runs in the flood; at its end the flooding process is killed in mid-sentence."""
    flood = Flood(kind, lab)
    try:
        until(lambda: flood.look() > 0, RECOVERY_S, "the flood begins")
        yield flood
    finally:
        flood.end()


@pytest.mark.parametrize(
    "kind",
    [
        "garbage",
        "hellos",
        pytest.param("strangers", marks=nightly),
        pytest.param("vast", marks=nightly),
        pytest.param("connections", marks=nightly),
        pytest.param("heat", marks=nightly),
        pytest.param("huge", marks=nightly),
    ],
)
def test_in_a_flood_epochs_settle(lab: Lab, kind: str) -> None:
    with lab.scenario(f"a flood of {kind}"):
        lab.daemon.kill()
        lab.configure(
            session__max_books_bytes=BOOKS_BYTES,
            session__silence_s=SILENCE_S,
            balance__interval_s=INTERVAL_S,
        )
        lab.settles_further()
        with flooded(kind, lab) as flood:
            sent = flood.look()
            for _ in range(EPOCHS):
                lab.settles_further()
                flood.look()
            assert all(report.connected for report in lab.group.reports()), "beats arrive"
            until(lambda: flood.look() > sent, RECOVERY_S, "it was a flood until the end")
        # Killed in mid-sentence: nothing is left of it but what it had said.
        lab.settles_further(EPOCHS)
        flood.weigh()
        assert flood.peak - flood.before < GROWTH_BYTES, f"{flood.peak // MIB} MiB"
        sys.stdout.write(
            f"\n{kind}: {flood.sent} messages, {flood.before // MIB} to {flood.peak // MIB} MiB\n"
        )
        lab.configure()
        lab.daemon.kill()
