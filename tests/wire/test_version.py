"""Two ranges of versions meet, or one side learns that it is to be upgraded."""

from __future__ import annotations

import pytest

from eplbd.core.messages import WIRE_VERSION, WIRE_VERSION_MIN
from eplbd.errors import RemoteProtocolError
from eplbd.wire.version import negotiate


@pytest.mark.parametrize(
    ("theirs", "ours", "spoken"),
    [
        ((1, 1), (1, 1), 1),
        ((2, 1), (1, 1), 1),
        ((2, 1), (3, 2), 2),
        ((3, 2), (3, 2), 3),
        ((2, 2), (3, 2), 2),
    ],
)
def test_the_newest_that_both_understand(
    theirs: tuple[int, int], ours: tuple[int, int], spoken: int
) -> None:
    assert negotiate(*theirs, *ours) == spoken


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        ((1, 1), (3, 2), "upgrade eplbd in the worker's environment"),
        ((4, 3), (2, 1), "upgrade the daemon"),
        ((1, 2), (2, 1), "none at all"),
    ],
)
def test_no_common_version_names_the_side_to_upgrade(
    theirs: tuple[int, int], ours: tuple[int, int], words: str
) -> None:
    with pytest.raises(RemoteProtocolError, match=words):
        negotiate(*theirs, *ours)


def test_this_release_understands_itself() -> None:
    assert negotiate(WIRE_VERSION, WIRE_VERSION_MIN) == WIRE_VERSION
