"""Two EP ranks of a real vLLM, moved about while they generate: not one token changes.

fp32 and greedy. Expert parallelism changes the order of a sum; in bf16 that alone changes tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.process import daemon, write_config
from tests.vllm.engines import offline
from tests.vllm.lab import RESTLESS

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1800)]

EPOCHS = 20

Models = Callable[[str], Path]
Reference = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("shape", ["qwen3", pytest.param("deepseek", marks=pytest.mark.nightly)])
def test_tokens_stay_while_experts_move(
    shape: str, model_of: Models, reference: Reference, tmp_path: Path
) -> None:
    expected = reference(shape)
    with daemon(write_config(tmp_path, **RESTLESS)) as process:
        report = offline(
            tmp_path,
            f"ipc://{tmp_path}/w.sock",
            model=str(model_of(shape)),
            ranks=2,
            redundant=2,
            epochs=EPOCHS,
            broken=True,
        )
        ended = [line for line in process.lines if line["event"] == "epoch ended"]
    story = f"{report['log'][-3000:]}\n{process.story()[-3000:]}"
    assert "eplbd balances" not in expected["log"], "the reference is vLLM alone, switched off"
    assert "eplbd: " not in expected["log"], "and nothing is said of it"
    assert report["attached"], story
    assert report["rival"] == [0, 2, 0], "vLLM's own balancer acts, but not beside eplbd"
    assert report["commits"] >= EPOCHS, story
    assert sum(line["outcome"] == "settled" for line in ended) >= EPOCHS, story
    assert "placement frozen" not in process.events(), story
    assert report["tokens"] == expected["tokens"]
    assert report["differing"] == 0, f"{report['differing']} of {report['rounds']} rounds"
    assert report["woken"] == expected["tokens"]
    # The control: were the comparison blind, it would not see this either.
    assert report["broken_differs"] is True
    if shape == "qwen3":
        # What vLLM loads anew on a CPU is not what it loaded at first; vLLM alone is the measure.
        assert report["reloaded"] == expected["reloaded"]
