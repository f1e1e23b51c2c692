"""Each test of a peer's fault fails on that peer, where the peers' sources are unpacked."""

import os

import pytest

from tests.bench.fronts.unpack import MADE, WHEELS
from tests.bench.fronts.yardstick import SharedMissingError, shared
from tests.bench.peer_faults import FAULTS, TIMEOUT_S, Fault, ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S + 20)]

FAILURES = ("AssertionError", "PlacementError", "IndexError", "ValueError", "died of signal")
"""Of a peer; another one would be the adapter's."""


@pytest.fixture(scope="module", autouse=True)
def _unpacked() -> None:
    try:
        shared()
    except SharedMissingError as error:
        pytest.skip(f"no adapters of peers: {error}")
    unpacked = all((MADE / "peers" / wheel.folder).is_dir() for wheel in WHEELS)
    if not unpacked and not os.environ.get("EPLB_PEERS"):
        pytest.skip("no sources of peers here: `make bench-policies` unpacks them")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.title)
def test_the_peer_fails_it(fault: Fault) -> None:
    assert ask(fault).startswith(FAILURES)
