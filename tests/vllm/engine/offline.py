"""One rank of an offline engine, driven round by round; runs where vLLM is installed.

    torchrun --nproc-per-node RANKS offline.py SPEC       (or python offline.py SPEC for one rank)

SPEC is a JSON object, see `Spec`. Each round generates greedily for the same prompts, beside other
ones whose words change with the round, so that there is always something to balance. All ranks run
the same calls: an epoch flips at the same forward everywhere, so all leave the loop together. The
first rank prints one JSON line.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from vllm import LLM, SamplingParams

from eplbd_vllm.hooks import Wrapper, guest_of
from eplbd_vllm.torch_guest import Guest
from eplbd_vllm.upstream import Worker

PROMPTS = 4
WORDS = 24
"""Of a prompt of the check, and tokens generated for it."""


@dataclass
class Spec:
    """What to run.

    ranks: tensor-parallel. redundant: slots more than experts, None without EPLB. epochs: rounds go
    on until so many were committed, at most `rounds`. reloaded: at the end, one more round with
    weights that were loaded anew, and one with a sleep before. broken: then one with a wrong map.
    compiled: torch.compile rather than eager.
    """

    model: str
    ranks: int = 1
    redundant: int | None = None
    epochs: int = 0
    rounds: int = 100
    reloaded: bool = False
    broken: bool = False
    compiled: bool = False


@dataclass
class Report:
    """What came of it.

    tokens: of the first round. differing: rounds whose tokens were not those of the first.
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
    reloaded_differs: bool | None = None


def engine(spec: Spec) -> LLM:
    options: dict[str, Any] = {}
    if spec.ranks > 1:
        options |= {
            "tensor_parallel_size": spec.ranks,
            "distributed_executor_backend": "external_launcher",
            "enable_expert_parallel": True,
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


def generate(llm: LLM, number: int) -> list[list[int]]:
    """Tokens of the check's prompts; the others' words change with the round."""
    topic = range(8, 256) if number % 2 else range(256, 504)
    checked = [prompt(seed, range(8, 504)) for seed in range(PROMPTS)]
    others = [prompt(number * 7 + seed, topic) for seed in range(PROMPTS)]
    sampling = SamplingParams(temperature=0.0, max_tokens=WORDS, ignore_eos=True)
    outputs = llm.generate([*checked, *others], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs[:PROMPTS]]


def worker_of(llm: LLM) -> Wrapper:
    """The worker's wrapper of this process."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    return cast("Wrapper", executor.driver_worker)


def break_map(worker: Worker) -> None:
    """Exchange two experts of one layer in the table alone."""
    state = worker.model_runner.eplb_state
    assert state is not None
    table = next(iter(state.model_states.values())).logical_to_physical_map[1]
    table[[0, 1]] = table[[1, 0]].clone()


def reload_and_sleep(llm: LLM) -> list[list[int]]:
    """Tokens after the weights were loaded anew, each into the slot that it had at first."""
    llm.collective_rpc("reload_weights")
    llm.collective_rpc("sleep")
    llm.collective_rpc("wake_up")
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
    if spec.reloaded:
        report.reloaded_differs = reload_and_sleep(llm) != report.tokens
    if spec.broken:
        break_map(wrapper.worker)
        report.broken_differs = generate(llm, 0) != report.tokens
    if guest is not None:
        guest.leave()
    return report


if __name__ == "__main__":
    done = drive(Spec(**json.loads(sys.argv[1])))
    if int(os.environ.get("RANK", "0")) == 0:
        Path(os.environ["EPLBD_TEST_REPORT"]).write_text(json.dumps(asdict(done)))
