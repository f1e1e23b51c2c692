"""vllm-ascend's own sources on CPU, balanced by a real daemon: everything is where the map says."""

import pytest

pytest.importorskip("torch")

from tests.ascend.conftest import Ranks
from tests.ascend.control import Case

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CASES = {
    "bf16": Case(),
    "W8A8-dynamic": Case("W8A8_DYNAMIC", private=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_tensor_is_where_the_map_says(case: Case, ranks: Ranks) -> None:
    reports = ranks(case)
    assert [report.complaint for report in reports] == ["", ""]
    assert [report.wrong for report in reports] == [[], []]
    assert len({(report.epoch, report.digest) for report in reports}) == 1
    assert all(report.epoch >= 3 for report in reports)
    assert all(report.moved and report.checked_bytes and report.retired for report in reports)
