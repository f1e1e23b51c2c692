"""The three hosts: built when first needed, one set for all scenarios."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.conftest import opened
from tests.cluster.hosts import why_not
from tests.cluster.lab import ClusterLab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterLab]:
    """Three hosts, six ranks; skipped by name where there can be no namespaces."""
    if reason := why_not():
        pytest.skip(f"no hosts made of namespaces: {reason}")
    made = ClusterLab(tmp_path_factory.mktemp("cluster"))
    yield from opened(made)  # type: ignore[misc]  # yields the laboratory that it is given
