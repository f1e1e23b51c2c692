"""Every policy of the distribution passes the conformance kit."""

import pytest

from eplbd.plugins import Catalogue
from eplbd.testing import check_policy
from tests.policies.asked import BALANCES, DISCLAIMED, PLUGINS, claiming


@pytest.mark.slow
@pytest.mark.parametrize("name", claiming())
def test_it_keeps_the_contract(name: str) -> None:
    policy = Catalogue(PLUGINS).find(name).policy
    check_policy(policy, deadline_s=20.0, balances=(name, BALANCES) not in DISCLAIMED)


def test_the_policies_are_found() -> None:
    assert {"random", "greedy", "swift", "flashlb"} <= {plugin.name for plugin in PLUGINS}
