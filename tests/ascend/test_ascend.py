"""vllm-ascend's own sources on CPU, balanced by a real daemon: everything is where the map says."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.ascend.conftest import Ranks
from tests.ascend.control import Case

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CASES = {
    "bf16": Case(),
    "bf16 with biases": Case(bias=True, redundant=0),
    "bf16, fused MC2": Case(fused_mc2=1, private=True),
    "W8A8": Case("W8A8_MIX", private=True),
    "W8A8-dynamic, TP 2": Case("W8A8_DYNAMIC", private=True, tp_size=2, dispatch="ALLTOALL"),
    "W8A8-dynamic, fused MC2": Case("W8A8_DYNAMIC", private=True, fused_mc2=1),
    "W4A8 per channel": Case("W4A8_DYNAMIC", private=True, fused_mc2=1),
    "W4A8 in groups of 16": Case(
        "W4A8_DYNAMIC", private=True, fused_mc2=1, group_size=16, version="0"
    ),
    "all-gather, no replicas": Case(dispatch="ALLGATHER", redundant=0),
}

REFUSED = {
    "a quantisation that vllm-ascend does not balance": (
        Case("W4A16", group_size=16),
        "vllm-ascend itself cannot move these experts",
    ),
    "W4A8 whose tensors are not cleft by expert": (
        Case("W4A8_DYNAMIC", fused_mc2=0),
        "vllm-ascend itself cannot move these experts",
    ),
    "replicas where each rank would compute its own": (
        Case(dispatch="ALLGATHER"),
        "this engine may dispatch by all-gather",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_tensor_is_where_the_map_says(case: Case, ranks: Ranks) -> None:
    reports = ranks.play(case)
    assert [report.complaint for report in reports] == ["", ""]
    assert [report.wrong for report in reports] == [[], []]
    assert len({(report.epoch, report.digest) for report in reports}) == 1
    assert all(report.epoch >= 3 for report in reports), ranks.story()
    assert all(report.checked_bytes and report.retired for report in reports)
    assert sum(report.received_bytes for report in reports) > 0


@pytest.mark.parametrize(("case", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_described_is_refused_by_every_rank(
    case: Case, sentence: str, ranks: Ranks
) -> None:
    for report in ranks.play(case):
        assert sentence in report.complaint, report
        assert not report.retired, "the engine's own balancer was to stay as it was"


def test_the_record_is_what_the_engine_would_start_from(ranks: Ranks, tmp_path: Path) -> None:
    record = tmp_path / "maps" / "eplb.json"
    reports = ranks.play(Case(), record=str(record))
    assert [report.wrong for report in reports] == [[], []]
    assert reports[0].recorded == reports[0].digest, json.loads(record.read_text())
