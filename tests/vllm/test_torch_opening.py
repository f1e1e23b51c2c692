"""Mode static: ranks that begin with the operator's placement, or all of them as they are."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._C._distributed_c10d import PrefixStore, TCPStore  # noqa: E402

from eplbd.core.placement import Placement  # noqa: E402
from eplbd.worker.torch_attach import Membership  # noqa: E402
from eplbd.worker.torch_experts import ExpertTensors  # noqa: E402
from eplbd.worker.torch_ring import TorchCounters  # noqa: E402
from eplbd_vllm.ascend.record import as_expert_map  # noqa: E402
from eplbd_vllm.settings import Settings  # noqa: E402
from eplbd_vllm.torch_guest import Guest, Survey  # noqa: E402
from eplbd_vllm.torch_tables import Tables  # noqa: E402

pytestmark = pytest.mark.slow

LAYERS, EXPERTS, RANKS, PER_RANK = 2, 6, 2, 4
PATIENCE = timedelta(seconds=60)
FIRST = Placement.linear(LAYERS, EXPERTS, RANKS, PER_RANK)
WANTED = Placement(np.ascontiguousarray(FIRST.slots[:, ::-1, ::-1]), EXPERTS)


class Rank:
    """One rank of an engine, whose weights say of which layer and expert they are."""

    def __init__(self, rank: int, store: TCPStore, settings: Settings) -> None:
        self.weights = [
            torch.tensor([[100.0 * layer + e] * 8 for e in FIRST.slots[layer, rank].tolist()])
            for layer in range(LAYERS)
        ]
        self.counters = TorchCounters(LAYERS, RANKS * PER_RANK, device=torch.device("cpu"))
        held = torch.from_numpy(FIRST.slots.reshape(LAYERS, -1).astype(np.int64))
        count = torch.stack([torch.bincount(row, minlength=EXPERTS) for row in held])
        self.tables = Tables(
            SimpleNamespace(
                physical_to_logical_map=held.clone(),
                logical_to_physical_map=torch.full((LAYERS, EXPERTS, 8), -1),
                logical_replica_count=count,
            )
        )
        member = Membership("tiny", rank, RANKS, PrefixStore("eplbd", store))
        self.guest = Guest(member, settings, self.survey)

    def survey(self) -> Survey:
        experts = ExpertTensors([{"w": each} for each in self.weights])
        held = self.tables.placement(RANKS)
        return Survey(experts, held, self.tables, self, lambda _: None)

    def collect(self) -> None:
        """Nothing is served here."""

    def drop(self) -> None:
        """Likewise."""

    def holds(self, placement: Placement, rank: int) -> bool:
        """Whether weights, table and agent are where `placement` says, in any order of slots."""
        agent = self.guest.agent
        assert agent is not None
        for there in (self.tables.placement(RANKS), agent.machine.placement):
            if not np.array_equal(there.hosts(), placement.hosts()):
                return False
        mine = self.tables.placement(RANKS).slots[:, rank]
        found = [[int(slot[-1]) for slot in layer] for layer in self.weights]
        return found == [[100 * n + e for e in slots] for n, slots in enumerate(mine.tolist())]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Where each rank reads its map: not there yet."""
    return [tmp_path / f"map{rank}.json" for rank in range(RANKS)]


@pytest.fixture
def ranks(tmp_path: Path, files: list[Path]) -> Iterator[list[Rank]]:
    host = TCPStore("127.0.0.1", 0, None, True, PATIENCE, wait_for_workers=False)
    stores = [host, TCPStore("127.0.0.1", host.port, None, False, PATIENCE)]
    settings = Settings(f"ipc://{tmp_path}/none.sock", "tiny", "auto", 2)
    made = [
        Rank(rank, store, replace(settings, opening=files[rank]))
        for rank, store in enumerate(stores)
    ]
    yield made
    for each in made:
        each.guest.leave()


def write(file: Path, placement: Placement) -> None:
    file.write_text(json.dumps(as_expert_map(placement)))


def attach(ranks: list[Rank]) -> None:
    with ThreadPoolExecutor(RANKS) as pool:
        assert list(pool.map(lambda each: each.guest.attach(), ranks)) == ["", ""]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    return [each for each in said if "balance.map" in each]


def test_all_begin_with_the_map(
    ranks: list[Rank], files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    for file in files:
        write(file, WANTED)
    attach(ranks)
    assert not np.array_equal(FIRST.hosts(), WANTED.hosts())
    assert [each.holds(WANTED, rank) for rank, each in enumerate(ranks)] == [True] * RANKS
    assert warnings(caplog) == []


def test_weights_that_were_loaded_anew_go_there_again(ranks: list[Rank], files: list[Path]) -> None:
    for file in files:
        write(file, WANTED)
    attach(ranks)
    for rank, each in enumerate(ranks):
        each.guest.pause(lost=True)
        for layer in range(LAYERS):
            each.weights[layer] = torch.tensor(
                [[100.0 * layer + e] * 8 for e in FIRST.slots[layer, rank].tolist()]
            )
    with ThreadPoolExecutor(RANKS) as pool:
        list(pool.map(lambda each: each.guest.resume(reloaded=True), ranks))
    assert [each.holds(WANTED, rank) for rank, each in enumerate(ranks)] == [True] * RANKS


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([None, None], "map0.json"),
        ([WANTED, None], "rank 1: .*map1.json"),
        ([WANTED, FIRST], "rank 1: the file is another one here than on rank 0"),
        ([Placement.linear(LAYERS, EXPERTS, RANKS, 3)] * 2, "record one of this group"),
    ],
)
def test_whatever_is_wrong_with_it_all_stay_as_they_are(
    there: list[Placement | None],
    said: str,
    ranks: list[Rank],
    files: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for file, placement in zip(files, there, strict=True):
        if placement is not None:
            write(file, placement)
    attach(ranks)
    assert [each.holds(FIRST, rank) for rank, each in enumerate(ranks)] == [True] * RANKS
    (line,) = warnings(caplog)
    assert line.startswith("eplbd: balance.map is not in force: ")
    assert re.search(said, line)
