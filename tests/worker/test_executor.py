"""The check of a rank's work: what would harm the executor is refused, naming the row."""

import numpy as np
import pytest

from eplbd.core.rounds import Col
from eplbd.errors import TransferError
from eplbd.worker.executor import Capacity, RankWork, Transfer, check_work
from tests.worker.ranks import Row, row, work_of

CAPACITY = Capacity(rank=1, ranks=4, layers=3, slots_per_rank=3, experts_per_rank=2)


def test_a_transfer_has_the_columns_of_the_table() -> None:
    assert [name.upper() for name in Transfer._fields] == [column.name for column in Col]


def test_transfers_come_by_round_in_the_order_of_rows() -> None:
    rows = [
        row(1, 0, 5, (1, 0), (2, 0)),
        row(0, 2, 7, (0, 1), (1, 1), 1),
        row(1, 0, 6, (3, 0), (1, 0)),
    ]
    first, second, third = check_work(RankWork(1, 3, work_of(1, rows).transfers), CAPACITY)
    assert first == (Transfer(*rows[1]),)
    assert second == (Transfer(*rows[0]), Transfer(*rows[2]))
    assert third == ()


FINE = row(0, 0, 5, (0, 0), (1, 0))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([row(0, 0, 5, (0, 0), (2, 0))], "concerns other ranks"),
        ([row(0, 0, 5, (4, 0), (1, 0))], "no such source"),
        ([row(0, 0, 5, (1, 0), (4, 0))], "no such destination"),
        ([row(5, 0, 5, (0, 0), (1, 0))], "not within 1 rounds"),
        ([row(0, 3, 5, (0, 0), (1, 0))], "unknown layer"),
        ([row(0, -1, 5, (0, 0), (1, 0))], "unknown layer"),
        ([row(0, 0, 5, (1, 3), (2, 0))], "reads slot 3"),
        ([row(0, 0, 5, (1, -1), (2, 0))], "reads slot -1"),
        ([row(0, 0, 5, (0, 0), (1, 3))], "writes slot 3"),
        ([row(0, 0, 5, (0, 0), (1, 0), 2)], "needs staging buffer 2 of 2"),
        ([FINE, row(0, 0, 6, (2, 0), (1, 1))], "reuses a staging buffer"),
        ([FINE, row(0, 0, 6, (2, 0), (1, 0), 1)], "writes slot 0 a second time"),
        ([row(0, 0, 5, (1, 0), (2, 0), relay=1)], "nothing fills it"),
        ([FINE, row(0, 0, 6, (1, 0), (2, 0), relay=0)], "holds layer 0's 5"),
        ([FINE, row(0, 0, 5, (1, 0), (2, 0), relay=0)], "before it is filled"),
        (
            [row(0, 0, expert, (1, expert), (dst, 0)) for expert, dst in ((0, 0), (1, 2), (2, 3))],
            "sends 3 experts, at most 2",
        ),
    ],
)
def test_what_would_harm_is_refused(rows: list[Row], complaint: str) -> None:
    work = RankWork(1, 1, np.array(rows, dtype=np.int32))
    with pytest.raises(TransferError, match=complaint) as caught:
        check_work(work, CAPACITY)
    assert "round " in str(caught.value), "the row must be named"


def test_a_work_for_another_rank_is_refused() -> None:
    with pytest.raises(TransferError, match="for rank 0, this is rank 1"):
        check_work(work_of(0, [FINE]), CAPACITY)


def test_a_table_of_another_shape_is_refused() -> None:
    with pytest.raises(TransferError, match="expected"):
        check_work(RankWork(1, 1, np.zeros((2, 8), dtype=np.int32)), CAPACITY)
