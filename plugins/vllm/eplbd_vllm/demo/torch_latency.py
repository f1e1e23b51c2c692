"""One rank of an engine whose token latency is measured: eplbd away, there but still, and moving.

    torchrun --nproc-per-node 2 -m eplbd_vllm.demo.torch_latency SPEC

SPEC is a JSON object, see `Spec`. Owns the order of the blocks: in each round every arm has one, in
turns forwards and backwards, so that a machine that gets slower is no arm's fault. All ranks run
the same blocks; the first one gives the orders to the daemon, measures, and writes a `Report`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vllm import SamplingParams

from eplbd_vllm.demo.clients import LENGTH, topic
from eplbd_vllm.demo.torch_offline import offline_engine, wrapper_of
from eplbd_vllm.hooks import guest_of, seat

if TYPE_CHECKING:
    from eplbd_vllm.torch_guest import Guest

ARMS = ("away", "still", "moving")
"""No hook; the hook and a daemon that was told to rest; the hook amid epochs."""

REQUESTS = 12
"""At once: each step is one token of each."""
SETTLING_STEPS, STEPS = 24, 64


@dataclass(frozen=True)
class Spec:
    """model, report: paths. ctl: the command `eplbd`, and its options for an order."""

    model: str
    report: str
    ctl: list[str]
    rounds: int


@dataclass
class Report:
    """Per arm and round, of the steps that decode: seconds of each, and processor seconds of all.

    moving: only steps amid an epoch are in `step_s`. epochs: settled in the blocks of that arm.
    """

    step_s: dict[str, list[list[float]]] = field(default_factory=lambda: {a: [] for a in ARMS})
    cpu_s: dict[str, list[float]] = field(default_factory=lambda: {a: [] for a in ARMS})
    steps: int = STEPS
    epochs: int = 0


class Rank:
    """The engine, its guest, and what the daemon was told last."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.first = spec, os.environ["RANK"] == "0"
        self.llm = offline_engine(spec.model, ranks=int(os.environ["WORLD_SIZE"]), redundant=2)
        self.wrapper = wrapper_of(self.llm)
        guest = guest_of(self.wrapper)
        if guest is None:
            raise SystemExit("eplbd did not join this engine: see the log above")
        self.guest = cast("Guest", guest)
        self.report = Report()
        self._blocks, self._ordered = 0, "resume"

    def run(self) -> None:
        """All rounds."""
        for number in range(self.spec.rounds):
            for arm in ARMS if number % 2 == 0 else reversed(ARMS):
                self._prepare(arm)
                self._measure(arm)
        seat(self.wrapper, self.guest)
        self.guest.leave()

    def _prepare(self, arm: str) -> None:
        """Give the order, and let what was under way come to its end."""
        seat(self.wrapper, self.guest)
        order = "resume" if arm == "moving" else "pause"
        if self.first and order != self._ordered:
            command, *options = self.spec.ctl
            subprocess.run(  # noqa: S603 - no shell: the arguments are ours
                [command, "ctl", order, *options], check=True, stdout=subprocess.DEVNULL
            )
            self._ordered = order
        self._block(SETTLING_STEPS)
        if arm == "away":
            seat(self.wrapper, None)

    def _measure(self, arm: str) -> None:
        commits, began = self.guest.commits, time.process_time()
        steps = self._block(STEPS)
        self.report.cpu_s[arm].append(time.process_time() - began)
        moving = arm == "moving"
        self.report.step_s[arm].append([s for s, amid in steps if amid or not moving])
        if moving:
            self.report.epochs += self.guest.commits - commits

    def _block(self, tokens: int) -> list[tuple[float, bool]]:
        """Seconds of each step that decodes, and whether it ran amid an epoch.

        The words change from block to block, so that there is always something to balance.
        """
        self._blocks += 1
        words = topic(self._blocks)
        sampling = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, allowed_token_ids=list(words)
        )
        engine = self.llm.llm_engine
        for number in range(REQUESTS):
            prompt = {"prompt_token_ids": [words[number % len(words)]] * LENGTH}
            engine.add_request(f"{self._blocks}-{number}", prompt, sampling)
        found: list[tuple[float, bool]] = []
        while engine.has_unfinished_requests():
            amid, began = self._amid(), time.perf_counter()
            engine.step()
            found.append((time.perf_counter() - began, amid or self._amid()))
        return found[1:]  # the first one reads the prompts

    def _amid(self) -> bool:
        agent = self.guest.agent
        return agent is not None and agent.machine.pending > 0


def main() -> None:
    """Run the rank."""
    rank = Rank(Spec(**json.loads(sys.argv[1])))
    rank.run()
    if rank.first:
        Path(rank.spec.report).write_text(json.dumps(asdict(rank.report)), encoding="utf-8")


if __name__ == "__main__":
    main()
