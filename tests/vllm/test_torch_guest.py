"""A guest's life in two ranks that share a store: all attach or none, and no failure gets out."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._C._distributed_c10d import PrefixStore, TCPStore  # noqa: E402

from eplbd.core.placement import Placement  # noqa: E402
from eplbd.errors import ConfigError  # noqa: E402
from eplbd.worker.torch_attach import Membership  # noqa: E402
from eplbd.worker.torch_experts import ExpertTensors  # noqa: E402
from eplbd.worker.torch_ring import TorchCounters  # noqa: E402
from eplbd_vllm.settings import Settings  # noqa: E402
from eplbd_vllm.torch_guest import Guest, Survey  # noqa: E402
from eplbd_vllm.torch_tables import Tables  # noqa: E402
from tests.runtime.conftest import wait_until  # noqa: E402
from tests.runtime.process import write_config  # noqa: E402
from tests.vllm.lab import newer_daemon  # noqa: E402

pytestmark = pytest.mark.slow

LAYERS, EXPERTS, RANKS, PER_RANK = 2, 4, 2, 3
PATIENCE = timedelta(seconds=60)
FIRST = Placement.linear(LAYERS, EXPERTS, RANKS, PER_RANK)


class Heat:
    """Counts, and which of its calls came."""

    def __init__(self, told: list[str]) -> None:
        self.counters = TorchCounters(LAYERS, RANKS * PER_RANK, device=torch.device("cpu"))
        self._told = told

    def collect(self) -> None:
        self._told.append("collect")

    def drop(self) -> None:
        self._told.append("drop")


@dataclass
class Engine:
    """One rank of an engine: its tensors and maps, what became of it, what it refuses."""

    told: list[str] = field(default_factory=list)
    refusal: Exception | None = None
    obstacle: Exception | None = None

    def __post_init__(self) -> None:
        self.heat = Heat(self.told)
        self.experts = ExpertTensors([{"w": torch.zeros(PER_RANK, 8)} for _ in range(LAYERS)])
        held = torch.arange(RANKS * PER_RANK) % EXPERTS
        self.tables = Tables(
            SimpleNamespace(
                physical_to_logical_map=held.repeat(LAYERS, 1),
                logical_to_physical_map=torch.full((LAYERS, EXPERTS, 8), -1),
                logical_replica_count=torch.bincount(held).repeat(LAYERS, 1),
            )
        )

    def survey(self) -> Survey:
        if self.refusal is not None:
            raise self.refusal
        held = self.tables.placement(RANKS)
        return Survey(self.experts, held, self.tables, self.heat, self.take_over)

    def take_over(self, stack: ExitStack) -> None:
        self.told.append("taken")
        stack.callback(self.told.append, "given back")
        if self.obstacle is not None:
            raise self.obstacle


@dataclass
class Ranks:
    """Both ranks, which do everything at the same time."""

    engines: list[Engine]
    guests: list[Guest]

    def all(self, act: Callable[[Guest], object]) -> list[object]:
        with ThreadPoolExecutor(RANKS) as pool:
            return list(pool.map(act, self.guests))

    def attach(self) -> None:
        assert self.all(Guest.attach) == ["", ""]

    def pause(self, *, lost: bool = False) -> None:
        self.all(lambda guest: guest.pause(lost=lost))

    def resume(self, *, reloaded: bool = False) -> None:
        self.all(lambda guest: guest.resume(reloaded=reloaded))

    def forward(self, *, dummy: bool = False) -> None:
        for guest in self.guests:
            guest.before_forward()
            guest.after_forward(0 if dummy else 8, dummy=dummy, phase=0)

    @property
    def attached(self) -> list[bool]:
        return [guest.agent is not None and guest.agent.alive for guest in self.guests]

    def placements(self) -> list[Placement]:
        return [engine.tables.placement(RANKS) for engine in self.engines]


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    """Not attached yet; there is no daemon."""
    host = TCPStore("127.0.0.1", 0, None, True, PATIENCE, wait_for_workers=False)
    stores = [host, TCPStore("127.0.0.1", host.port, None, False, PATIENCE)]
    settings = Settings(f"ipc://{tmp_path}/none.sock", "tiny", "auto", 2)
    engines = [Engine() for _ in range(RANKS)]
    guests = [
        Guest(
            Membership("tiny", rank, RANKS, PrefixStore("eplbd", stores[rank])),
            settings,
            engine.survey,
        )
        for rank, engine in enumerate(engines)
    ]
    made = Ranks(engines, guests)
    yield made
    made.all(Guest.leave)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_all_attach_and_one_says_so(ranks: Ranks, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vllm.eplbd"):
        ranks.attach()
    assert ranks.attached == [True, True]
    said = [each.getMessage() for each in caplog.records if each.name == "vllm.eplbd"]
    assert [each.partition(":")[0] for each in said] == [
        "eplbd balances this engine",
        "eplbd",  # that there is no daemon
    ]
    for number in (1, 2):
        ranks.forward()
        assert [guest.forwards for guest in ranks.guests] == [number] * RANKS


@pytest.mark.parametrize(
    "refusal", [ConfigError("no  slots\nhere"), AttributeError("no slots here")]
)
def test_what_one_rank_refuses_all_refuse_and_nothing_is_changed(
    ranks: Ranks, refusal: Exception
) -> None:
    ranks.engines[1].refusal = refusal
    assert ranks.all(Guest.attach) == ["rank 1: no slots here", "no slots here"]
    assert ranks.attached == [False, False]
    assert [engine.told for engine in ranks.engines] == [[], []]


def test_dummies_are_dropped(ranks: Ranks) -> None:
    ranks.attach()
    ranks.forward()
    ranks.forward(dummy=True)
    for engine in ranks.engines:
        assert engine.told == ["taken", "drop", "collect", "drop"]


def test_a_pause_ends_the_agent_and_gives_back(ranks: Ranks) -> None:
    ranks.attach()
    before = [guest.agent for guest in ranks.guests]
    ranks.pause()
    assert [agent is not None and agent.alive for agent in before] == [False, False]
    assert ranks.attached == [False, False]
    for engine in ranks.engines:
        assert engine.told == ["taken", "drop", "given back"]
    ranks.forward()  # of nobody's
    assert ranks.engines[0].told[-1] == "given back"
    ranks.resume()
    assert ranks.attached == [True, True]


def test_an_engine_may_tell_twice_that_its_weights_are_back(ranks: Ranks) -> None:
    ranks.attach()
    before = [guest.agent for guest in ranks.guests]
    ranks.resume()
    assert [agent is not None and agent.alive for agent in before] == [False, False]
    assert ranks.attached == [True, True]


def test_lost_weights_are_waited_for_and_found_where_they_were_at_first(ranks: Ranks) -> None:
    ranks.attach()
    moved = Placement(np.ascontiguousarray(FIRST.slots[:, ::-1]), EXPERTS)
    for engine in ranks.engines:
        engine.tables.reset(moved)
    ranks.pause(lost=True)
    ranks.resume()
    assert ranks.attached == [False, False]
    assert ranks.placements() == [moved] * RANKS
    ranks.resume(reloaded=True)
    assert ranks.attached == [True, True]
    assert ranks.placements() == [FIRST] * RANKS
    for guest in ranks.guests:
        assert guest.agent is not None
        assert guest.agent.machine.placement == FIRST


def test_a_refusal_at_waking_does_not_reach_the_engine(
    ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    ranks.attach()
    ranks.pause()
    ranks.engines[0].refusal = AttributeError("model")
    ranks.resume()
    assert warnings(caplog)[1:] == ["eplbd: the placement stays as it is from here on: model"]
    ranks.forward()
    assert ranks.attached == [False, False]


def test_an_agent_that_cannot_start_does_not_reach_the_engine(
    ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    ranks.attach()
    ranks.pause()
    for engine in ranks.engines:
        engine.obstacle = OSError("no thread left")
    ranks.resume()
    expected = "eplbd: the placement stays as it is from here on: no thread left"
    assert warnings(caplog)[1:] == [expected]
    assert [engine.told[-1] for engine in ranks.engines] == ["given back"] * RANKS
    ranks.forward()
    assert ranks.attached == [False, False]


def test_the_hook_is_called_after_the_guest_has_left(ranks: Ranks) -> None:
    ranks.attach()
    ranks.all(Guest.leave)
    ranks.forward()
    assert ranks.attached == [False, False]
    assert [guest.forwards for guest in ranks.guests] == [1, 1]


def test_a_daemon_of_another_wire_version_is_told_of_and_the_engine_serves(
    ranks: Ranks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    socket = tmp_path / "none.sock"
    with newer_daemon(write_config(tmp_path, daemon__socket=f"ipc://{socket}"), socket):
        ranks.attach()
        agents = [guest.agent for guest in ranks.guests]
        wait_until(
            lambda: all(agent and agent._registrar._refused for agent in agents),  # noqa: SLF001
            "each rank is refused",
        )
        ranks.forward()
        ranks.all(Guest.leave)  # what is to be said was said then
    (said,) = warnings(caplog)
    assert re.search("eplbd refuses this worker: .* wire versions.*: upgrade .*worker", said)
    assert [guest.forwards for guest in ranks.guests] == [1] * RANKS


def test_all_ranks_have_the_name_that_rank_0_gave(ranks: Ranks) -> None:
    """An engine may show each of them other devices."""
    for rank, guest in enumerate(ranks.guests):
        guest._membership = replace(guest._membership, group=f"tiny@{rank}")  # noqa: SLF001
    ranks.attach()
    agents = [guest.agent for guest in ranks.guests]
    assert [agent and agent.identity.group for agent in agents] == ["tiny@0"] * RANKS
