"""One rank of an offline engine, driven round by round; runs where vLLM is installed.

    torchrun --nproc-per-node RANKS offline.py SPEC       (or python offline.py SPEC for one rank)

SPEC is a JSON object, see `Spec`. Each round generates greedily for the same prompts, beside
other ones whose words change every few rounds, so that there is always something to balance. All
ranks run the same calls: an epoch flips at the same forward everywhere, so all leave the loop
together. The first rank writes a JSON object to $EPLBD_TEST_REPORT.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from vllm import LLM, SamplingParams
from vllm.distributed.eplb.eplb_state import EplbState

from eplbd_vllm.demo.torch_offline import THEIR_INTERVAL, offline_engine, wrapper_of
from eplbd_vllm.hooks import guest_of
from eplbd_vllm.torch_cpu_gaps import CpuEplbState
from eplbd_vllm.torch_guest import Guest
from eplbd_vllm.torch_upstream import retire
from eplbd_vllm.upstream import ModelState, Worker

PROMPTS = 4
WORDS = 24
"""Of a prompt, and tokens generated for it."""
TOPIC_ROUNDS = 4


@dataclass
class Spec:
    """What to run.

    model to compiled: see `offline_engine`. epochs: rounds go on until so many were committed, at
    most `rounds`. broken: one more round with a wrong map. again: after a sleep and after reloading
    as well.
    """

    model: str
    ranks: int = 1
    experts: bool = True
    redundant: int | None = None
    compiled: bool = False
    epochs: int = 0
    rounds: int = 100
    broken: bool = False
    again: bool = True


@dataclass
class Report:
    """What came of it.

    opening: `[layers, slots]`, before the first request. tokens: of the first round. differing:
    rounds whose tokens were not those of the first. woken: tokens after a sleep. reloaded: tokens
    after the weights were loaded anew. rival: see `rival`.
    """

    opening: list[list[int]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    rounds: int = 0
    differing: int = 0
    attached: bool = False
    commits: int = 0
    forwards: int = 0
    rival: list[int] = field(default_factory=list)
    start_s: float = 0.0
    seconds: float = 0.0
    broken_differs: bool | None = None
    woken: list[list[int]] = field(default_factory=list)
    reloaded: list[list[int]] = field(default_factory=list)


def prompt(seed: int, words: range) -> dict[str, list[int]]:
    """A prompt of words in `words`."""
    span = len(words)
    return {"prompt_token_ids": [words[(seed * 31 + i * 17) % span] for i in range(WORDS)]}


def topic(number: int) -> range:
    """Two words, others every `TOPIC_ROUNDS` rounds: few words keep few experts busy."""
    return range(8, 504)[22 * (number // TOPIC_ROUNDS) % 480 :][:2]


def generate(llm: LLM, number: int) -> list[list[int]]:
    """Tokens of the check's prompts; the others read and write the words of the round's topic."""
    words = topic(number)
    checked = [prompt(seed, range(8, 504)) for seed in range(PROMPTS)]
    others = [prompt(number * 7 + seed, words) for seed in range(2 * PROMPTS)]
    free = SamplingParams(temperature=0.0, max_tokens=WORDS, ignore_eos=True)
    bound = SamplingParams(
        temperature=0.0, max_tokens=WORDS, ignore_eos=True, allowed_token_ids=list(words)
    )
    sampling = [free] * len(checked) + [bound] * len(others)
    outputs = llm.generate([*checked, *others], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs[:PROMPTS]]


def maps_of(worker: Worker) -> ModelState:
    state = worker.model_runner.eplb_state
    assert state is not None
    return next(iter(state.model_states.values()))


class Asked:
    """How often vLLM's own balancer was told of a step.

    On a CPU it has none to tell; whoever attaches has to retire what stands in for it all the same.
    """

    steps = 0

    @classmethod
    def step(cls, *_: object, **__: object) -> None:
        cls.steps += 1


def rival(worker: Worker) -> list[int]:
    """What vLLM's own balancer did: as it was attached to, the real one alone, that one retired.

    Steps that the first was told of since the engine was there, forwards and all; rearrangements
    of the others, in twice the steps after which one is due. None of these forwards.
    """
    runner = worker.model_runner
    rearranged: list[None] = []
    attached, theirs = runner.eplb_state, EplbState(runner.parallel_config, torch.device("cpu"))
    theirs.expert_rearrangement_step_interval = THEIR_INTERVAL
    theirs.rearrange = lambda: rearranged.append(None)

    def steps() -> None:
        for _ in range(2 * THEIR_INTERVAL):
            runner.eplb_step()

    steps()
    runner.eplb_state = theirs
    steps()
    alone = len(rearranged)
    retire(theirs)
    steps()
    runner.eplb_state = attached
    return [Asked.steps, alone, len(rearranged) - alone]


def break_map(worker: Worker) -> None:
    """Exchange two experts of one layer in the tables alone; a second time puts them right."""
    maps = maps_of(worker)
    for table in (maps.logical_to_physical_map[1], maps.logical_replica_count[1]):
        table[[0, 1]] = table[[1, 0]].clone()


def after(llm: LLM, *calls: str) -> list[list[int]]:
    """Tokens after calls of the workers' methods."""
    for call in calls:
        llm.collective_rpc(call)
    return generate(llm, 0)


def drive(spec: Spec) -> Report:
    report, began = Report(), time.monotonic()
    CpuEplbState.step = Asked.step  # type: ignore[method-assign]
    llm = offline_engine(
        spec.model,
        ranks=spec.ranks,
        experts=spec.experts,
        redundant=spec.redundant,
        compiled=spec.compiled,
    )
    report.start_s, Asked.steps = time.monotonic() - began, 0
    wrapper = wrapper_of(llm)
    guest = cast("Guest | None", guest_of(wrapper))
    report.attached = guest is not None
    if guest is not None:
        report.opening = maps_of(wrapper.worker).physical_to_logical_map.tolist()
    began = time.monotonic()
    report.tokens = generate(llm, 0)
    report.rounds = 1
    # No clock in this condition: all ranks have to leave the loop in the same round.
    while guest is not None and guest.commits < spec.epochs and report.rounds < spec.rounds:
        report.differing += generate(llm, report.rounds) != report.tokens
        report.rounds += 1
    report.seconds = time.monotonic() - began
    if guest is not None:
        report.commits, report.forwards = guest.commits, guest.forwards
        report.rival = rival(wrapper.worker)
    if spec.again:
        report.woken = after(llm, "sleep", "wake_up")
    if spec.broken:
        break_map(wrapper.worker)
        report.broken_differs = generate(llm, 0) != report.tokens
        break_map(wrapper.worker)
    if spec.again:
        report.reloaded = after(llm, "reload_weights")
    if guest is not None:
        guest.leave()
    return report


if __name__ == "__main__":
    done = drive(Spec(**json.loads(sys.argv[1])))
    if int(os.environ.get("RANK", "0")) == 0:
        Path(os.environ["EPLBD_TEST_REPORT"]).write_text(json.dumps(asdict(done)))
