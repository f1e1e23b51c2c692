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
from typing import Any, cast

from vllm import LLM, SamplingParams
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

from eplbd_vllm.hooks import Wrapper, guest_of
from eplbd_vllm.torch_guest import Guest
from eplbd_vllm.upstream import Worker

PROMPTS = 4
WORDS = 24
"""Of a prompt, and tokens generated for it."""
TOPIC_ROUNDS = 4


@dataclass
class Spec:
    """What to run.

    ranks: tensor-parallel. experts: whether each rank has experts of its own, not parts of all.
    redundant: slots more than experts, None without EPLB. epochs: rounds go on until so many were
    committed, at most `rounds`. broken: one more round with a wrong map.
    compiled: torch.compile rather than eager.
    """

    model: str
    ranks: int = 1
    experts: bool = True
    redundant: int | None = None
    epochs: int = 0
    rounds: int = 100
    broken: bool = False
    compiled: bool = False


@dataclass
class Report:
    """What came of it.

    tokens: of the first round. differing: rounds whose tokens were not those of the first. woken:
    tokens after a sleep. reloaded: tokens after the weights were loaded anew.
    """

    tokens: list[list[int]] = field(default_factory=list)
    rounds: int = 0
    differing: int = 0
    attached: bool = False
    commits: int = 0
    forwards: int = 0
    start_s: float = 0.0
    seconds: float = 0.0
    broken_differs: bool | None = None
    woken: list[list[int]] = field(default_factory=list)
    reloaded: list[list[int]] = field(default_factory=list)


def block_rather_than_spin() -> None:
    """Let ranks that share cores meet over gloo.

    The shared-memory communicator spins for a peer that its spinning keeps from running, and all
    engines of a machine that torchrun started share the name of its segments.
    """
    setattr(CpuCommunicator, "_all_group_ranks_share_shm_group_name", lambda _: False)  # noqa: B010


def engine(spec: Spec) -> LLM:
    block_rather_than_spin()
    options: dict[str, Any] = {}
    if spec.ranks > 1:
        options |= {
            "tensor_parallel_size": spec.ranks,
            "distributed_executor_backend": "external_launcher",
            "enable_expert_parallel": spec.experts,
        }
    if spec.redundant is not None:
        options |= {
            "enable_eplb": True,
            "eplb_config": {"num_redundant_experts": spec.redundant},
        }
    return LLM(
        model=spec.model,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=16,
        enforce_eager=not spec.compiled,
        enable_prefix_caching=False,
        seed=0,
        **options,
    )


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


def worker_of(llm: LLM) -> Wrapper:
    """The worker's wrapper of this process."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    return cast("Wrapper", executor.driver_worker)


def break_map(worker: Worker) -> None:
    """Exchange two experts of one layer in the tables alone; a second time puts them right."""
    state = worker.model_runner.eplb_state
    assert state is not None
    maps = next(iter(state.model_states.values()))
    for table in (maps.logical_to_physical_map[1], maps.logical_replica_count[1]):
        table[[0, 1]] = table[[1, 0]].clone()


def after(llm: LLM, *calls: str) -> list[list[int]]:
    """Tokens after calls of the workers' methods."""
    for call in calls:
        llm.collective_rpc(call)
    return generate(llm, 0)


def drive(spec: Spec) -> Report:
    report, began = Report(), time.monotonic()
    llm = engine(spec)
    report.start_s = time.monotonic() - began
    wrapper = worker_of(llm)
    guest = cast("Guest | None", guest_of(wrapper))
    report.attached = guest is not None
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
    report.woken = after(llm, "sleep", "wake_up")
    if spec.broken:
        break_map(wrapper.worker)
        report.broken_differs = generate(llm, 0) != report.tokens
        break_map(wrapper.worker)
    report.reloaded = after(llm, "reload_weights")
    if guest is not None:
        guest.leave()
    return report


if __name__ == "__main__":
    done = drive(Spec(**json.loads(sys.argv[1])))
    if int(os.environ.get("RANK", "0")) == 0:
        Path(os.environ["EPLBD_TEST_REPORT"]).write_text(json.dumps(asdict(done)))
