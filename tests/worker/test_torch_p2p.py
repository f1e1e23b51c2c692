"""What the torch executor promises beyond the others: one rank's trouble, lanes, engines' modes."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch._C._distributed_c10d import HashStore  # noqa: E402

from eplbd.errors import ConfigError, LocalProtocolError, TransferError  # noqa: E402
from eplbd.worker.executor import RankWork  # noqa: E402
from eplbd.worker.torch_experts import ExpertTensors  # noqa: E402
from eplbd.worker.torch_lane import Lane, Seat  # noqa: E402
from eplbd.worker.torch_p2p import Route, TorchP2PExecutor  # noqa: E402
from tests.worker import torch_scenarios  # noqa: E402
from tests.worker.ranks import ProcessStage, Setting, row, work_of  # noqa: E402
from tests.worker.test_executors import after, contents, first  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["gloo", "gloo-host"])
def test_a_rank_that_fails_alone_leaves_no_peer_waiting(
    process_stage: ProcessStage, kind: str
) -> None:
    bad = [
        row(0, 0, 0, (0, 0), (1, 1)),
        row(0, 0, 2, (1, 1), (0, 2)),
        row(1, 0, 3, (0, 1), (2, 0)),
        row(1, 0, 4, (2, 1), (0, 1), 1),
    ]
    # The same expert from another slot: what is left of it in memory must not pass for the bad one.
    good = [row(0, 0, 0, (0, 1), (1, 2))]
    setting = Setting(kind, faulty_slot=0)
    outcomes = process_stage.play(setting, 3, torch_scenarios.failing_alone, bad, good)
    whole = "broken: False"
    before, staging, verifying, *after_it = outcomes[0].errors
    assert staging == "round 0, layer 0, expert 0, rank 0 to rank 1: this slot cannot be read"
    assert "not everything was staged" in verifying
    assert [before, *after_it] == [whole] * 3
    before, verifying, *after_it = outcomes[1].errors
    assert "expert 0, rank 0 to rank 1: its sender does not vouch for it" in verifying
    assert [before, *after_it] == [whole] * 3
    assert outcomes[2].errors == [whole] * 3, "the next round was not carried through"
    expected = after(first(3), good)
    expected[2] = after(first(3), bad[2:3])[2]
    assert contents(outcomes) == expected


def test_a_lane_without_all_ranks_is_given_up_and_the_next_one_works(
    process_stage: ProcessStage,
) -> None:
    setting = Setting("gloo", timeout_s=1.0)
    found = process_stage.play(setting, 3, torch_scenarios.lonely, 1)
    for rank in (0, 2):
        complaint, seconds, later = found[rank]
        assert complaint.startswith(f"lane 1: rank {rank} could not meet all 3 ranks within 1.0 s")
        assert seconds < 4.0
        assert later == ""


def test_weights_made_under_inference_mode_are_committed_in_place(
    process_stage: ProcessStage,
) -> None:
    found = process_stage.play(Setting("gloo"), 2, torch_scenarios.inference)
    assert found == [[0.0, 0.0], [1.0, 0.0]]


def experts(size: int = 8) -> ExpertTensors:
    return ExpertTensors([{"w": torch.arange(3 * size, dtype=torch.uint8).view(3, size)}])


def test_one_rank_alone_needs_no_transport() -> None:
    weights = experts()
    executor = TorchP2PExecutor(weights, HashStore(), 0, 1)
    assert executor.lane == -1
    broken = [executor.lane_broken]
    executor.renew(0)
    assert [*broken, executor.lane_broken] == [True, False]
    executor.reserve(work_of(0, [row(0, 0, 0, (0, 0), (0, 2))]))
    executor.stage(0)
    executor.verify()
    executor.commit()
    assert weights.parts(0, 2)[0].tolist() == list(range(8))
    assert executor.statistics().bytes_copied == 8


def test_nothing_is_allocated_before_the_first_reservation() -> None:
    executor = TorchP2PExecutor(experts(100_000), HashStore(), 0, 1, experts_per_rank=4)
    assert executor.statistics().staging_bytes == 0
    executor.reserve(RankWork(0, 0, work_of(0, []).transfers))
    assert 400_000 < executor.statistics().staging_bytes < 800_000


def test_memory_that_is_not_there_is_a_transfer_error() -> None:
    executor = TorchP2PExecutor(experts(1 << 20), HashStore(), 0, 1, experts_per_rank=1 << 40)
    with pytest.raises(TransferError, match="rank 0: no memory to stage in"):
        executor.reserve(RankWork(0, 0, work_of(0, []).transfers))
    assert executor.statistics().failures == 1


def test_a_lane_is_never_used_twice() -> None:
    executor = TorchP2PExecutor(experts(), HashStore(), 0, 1)
    executor.renew(4)
    with pytest.raises(LocalProtocolError, match="lane 4 was used already"):
        executor.renew(4)
    executor.renew(5)
    assert executor.lane == 5


def test_a_device_without_transport_is_refused_naming_the_fix() -> None:
    with pytest.raises(ConfigError, match="transport = 'host'"):
        Lane(Seat(HashStore(), 0, 2), 0, torch.device("meta"), "00", 1.0)


def test_a_commit_asks_nothing_of_the_host_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    weight = torch.arange(1 << 21, dtype=torch.int32, device="cuda").view(4, -1)
    executor = TorchP2PExecutor(ExpertTensors([{"w": weight}]), HashStore(), 0, 1, route=Route.HOST)
    executor.renew(0)
    executor.reserve(work_of(0, [row(0, 0, 0, (0, 0), (0, 3))]))
    executor.stage(0)
    executor.verify()
    expected = weight[0].tolist()
    torch.cuda.set_sync_debug_mode("error")
    try:
        executor.commit()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert weight[3].tolist() == expected


class WrittenMark:
    """A mark that writes down what it is asked for: on a CPU nothing else shows the order."""

    def __init__(self, weight: Tensor) -> None:
        self.asked: list[tuple[str, int]] = []
        self._weight = weight

    def _ask(self, what: str) -> None:
        self.asked.append((what, int(self._weight[2, 0])))

    def record(self) -> None:
        self._ask("record")

    def hold_back(self) -> None:
        self._ask("hold back")

    def reached(self) -> bool:
        return True


def test_staging_starts_behind_the_last_commit() -> None:
    weight = torch.tensor([[1], [2], [3]], dtype=torch.uint8)
    executor = TorchP2PExecutor(ExpertTensors([{"w": weight}]), HashStore(), 0, 1)
    mark = WrittenMark(weight)
    executor._committed = mark  # noqa: SLF001 (its order is what is tested)
    executor.renew(0)
    for source in (0, 1):
        executor.reserve(work_of(0, [row(0, 0, source, (0, source), (0, 2))]))
        executor.stage(0)
        executor.verify()
        executor.commit()
    assert mark.asked == [("hold back", 3), ("record", 1), ("hold back", 1), ("record", 2)]


def test_settings_of_the_suite_are_real(process_stage: ProcessStage) -> None:
    """The faulty slot is faulty only where the setting says so."""
    rows = [row(0, 0, 1, (0, 0), (1, 1))]
    setting = replace(Setting("gloo"), faulty_slot=-1)
    outcomes = process_stage.play(setting, 2, torch_scenarios.failing_alone, rows, rows)
    assert [outcome.errors for outcome in outcomes] == [["broken: False"] * 3] * 2
