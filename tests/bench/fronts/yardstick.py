"""The shared bench, with its loads, its metrics and its adapters of peers: found, loaded and asked.

Owns the loads of a run and how a row comes about. What is measured, and how, is the bench's own:
one instance per load, the first plan from the initial layout not scored, each later plan judged on
the window after its own.
"""

import importlib
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tests.bench.fronts.ours import Solve
from tests.bench.fronts.rows import Row
from tests.bench.fronts.unpack import REPOSITORY, digest

RANKS = {"deepseek_r1_prefill": 32, "mixtral8x7b_mmlu_a_drift": 4, "mixtral8x7b_mmlu_a_mixed": 4}
"""Of a recorded trace; 8 where it is not named."""
EPISODES = ("steady", "walk", "drift", "burst", "anti")
QUICK = ("dsv3-ep32", "qwen235-ep16")
SKEWS = ("ln0.5", "ln1.5", "zipf0.8", "zipf1.2")
NOT_PEERS = {"static"}
_PARTS = ("bench", "metrics", "peers", "workloads")


class SharedMissingError(Exception):
    """There is no shared bench to compare with; says where it was looked for."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load that can be built. recorded: whether a real model produced it."""

    name: str
    recorded: bool
    build: Callable[[], tuple[object, list[NDArray[np.int32]]]]


def shared() -> Path:
    """`$EPLBD_SHARED`, or `shared` beside the checkout."""
    folder = Path(os.environ.get("EPLBD_SHARED") or REPOSITORY.parent / "shared")
    for part in ("bench", "traces"):
        if not (folder / part).is_dir():
            raise SharedMissingError(
                f"no {folder / part}; set EPLBD_SHARED to the folder of `bench` and `traces`"
            )
    return folder


class Yardstick:
    """The bench of a shared folder, with the peers of another one."""

    def __init__(self, folder: Path, peers: Path) -> None:
        os.environ["EPLB_PEERS"] = str(peers)
        self._folder, self._peers_folder = folder, peers
        sys.path.insert(0, str(folder / "bench"))
        try:
            self._bench, self._metrics, self._peers, self._workloads = (
                importlib.import_module(part) for part in _PARTS
            )
        finally:
            sys.path.remove(str(folder / "bench"))
        self.cpu_s: list[float] = []
        vars(self._peers)["timed"] = self._timed

    def peers(self) -> list[str]:
        """Every peer that has an adapter; one that is not unpacked says so when it is run."""
        there = {folder.name for folder in self._peers_folder.iterdir()}
        names = [name for name in self._peers.POLICIES if name not in NOT_PEERS]
        return [name for name in names if _folder(name) in there]

    def key(self, peer: str) -> str:
        """What a peer's figures depend on, beside the machine."""
        parts = [self._folder / "bench" / f"{part}.py" for part in _PARTS]
        if peer.startswith("ascend"):  # counts its physical heat by the vLLM beside it
            parts.append(self._peers_folder / "vllm")
        return digest(*parts, self._peers_folder / _folder(peer))

    def own_key(self) -> str:
        """What our figures depend on, beside the machine."""
        core = REPOSITORY / "eplbd" / "core"
        ours = [core / f"{part}.py" for part in ("heat", "placement", "plan", "topology")]
        ours += [Path(__file__).with_name("ours.py"), REPOSITORY / "policies" / "eplbd_policies"]
        return digest(*(self._folder / "bench" / f"{part}.py" for part in _PARTS), *ours)

    def enter(self, name: str, make: Callable[[], Solve]) -> None:
        """Let a policy of ours be run under that name."""
        self._peers.POLICIES[name] = make

    def maker(self, name: str) -> Callable[[], Solve]:
        """A factory of that policy, as the bench calls it."""
        return cast("Callable[[], Solve]", self._peers.POLICIES[name])

    @staticmethod
    def one_thread() -> None:
        """What the bench's own command sets up: peers compute with torch, on one thread."""
        import torch

        torch.set_num_threads(1)

    def loads(self, *, everything: bool) -> Iterator[Load]:
        """Recorded ones first; all shapes and skews, or two shapes in all episodes."""
        for path in sorted((self._folder / "traces").glob("*.npz")):
            ranks = RANKS.get(path.stem, 8)
            yield Load(path.stem, recorded=True, build=self._recorded(path, ranks))
        shapes = [name for name in self._workloads.SHAPES if name != "toy"]
        for episode in EPISODES:
            for shape in shapes if everything else QUICK:
                yield self._synthetic(shape, "ln1.0", episode)
        for shape in QUICK if everything else ():
            for skew in SKEWS:
                yield self._synthetic(shape, skew, "steady")

    def run(self, name: str, load: str, built: tuple[object, object]) -> Row:
        """Roll a policy through the windows; what goes wrong is a result."""
        shape, windows = built
        self.cpu_s.clear()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs
                row = self._bench.run(name, shape, windows, 1, math.inf)
        except Exception as error:  # noqa: BLE001  # the supervisor of strangers' code
            reason = str(error).splitlines() or [""]
            return Row(load=load, policy=name, error=f"{type(error).__name__}: {reason[0]}"[:120])
        plans = self.cpu_s[-int(row["runs"]) :]
        return Row(
            load=load,
            policy=name,
            par=float(row["next_step"]),
            moves=float(row["moved"]),
            gap=float(row["gap"]),
            wall_ms=float(row["ms"]),
            cpu_ms=statistics.median(plans) * 1e3 if plans else 0.0,
        )

    def _timed(self, function: Callable[..., object], *args: object, **named: object) -> object:
        """The bench's clock around a peer's own function, with CPU seconds beside it."""
        cpu, wall = time.process_time(), time.perf_counter()
        answer = function(*args, **named)
        vars(self._peers)["seconds"] = time.perf_counter() - wall
        self.cpu_s.append(time.process_time() - cpu)
        return answer

    def _recorded(
        self, path: Path, ranks: int
    ) -> Callable[[], tuple[object, list[NDArray[np.int32]]]]:
        def build() -> tuple[object, list[NDArray[np.int32]]]:
            shape, _, _, windows = self._workloads.load(str(path), ranks)
            return shape, cast("list[NDArray[np.int32]]", windows)

        return build

    def _synthetic(self, name: str, skew: str, episode: str) -> Load:
        def build() -> tuple[object, list[NDArray[np.int32]]]:
            shape, _, _, windows = self._workloads.synthetic(name, skew, episode)
            return shape, cast("list[NDArray[np.int32]]", windows)

        return Load(f"{name} {skew} {episode}", recorded=False, build=build)


def _folder(peer: str) -> str:
    """Where a peer's sources are below the folder of peers."""
    word = peer.partition("-")[0].partition(":")[0]
    return "vllm_ascend" if word == "ascend" else word
