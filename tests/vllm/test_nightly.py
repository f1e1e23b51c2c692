"""What takes minutes offline: more ranks, compiled models. For servers: `test_serve.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplbd.core.placement import Placement
from eplbd_vllm.ascend.record import as_expert_map
from tests.runtime.process import daemon, write_config
from tests.vllm.engines import offline
from tests.vllm.lab import RESTLESS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.nightly,
    pytest.mark.timeout(3600),
]

EPOCHS = 20
LAYERS, EXPERTS = 3, 8
"""Of the tiny models."""


@pytest.mark.parametrize(
    ("ranks", "redundant", "compiled"), [(4, 4, False), (2, 2, True)], ids=["tp4", "compiled"]
)
def test_offline(
    ranks: int,
    redundant: int,
    compiled: bool,
    model_of: Callable[[str], Path],
    reference: Callable[[str], dict[str, Any]],
    tmp_path: Path,
) -> None:
    expected = reference("qwen3")
    with daemon(write_config(tmp_path, **RESTLESS)) as process:
        report = offline(
            tmp_path,
            f"ipc://{tmp_path}/w.sock",
            model=str(model_of("qwen3")),
            ranks=ranks,
            redundant=redundant,
            compiled=compiled,
            epochs=EPOCHS,
            broken=True,
        )
    story = f"{report['log'][-3000:]}\n{process.story()[-3000:]}"
    assert report["commits"] >= EPOCHS, story
    assert report["rival"] == [0, 2, 0]
    assert report["tokens"] == expected["tokens"]
    assert report["differing"] == 0, f"{report['differing']} of {report['rounds']} rounds"
    assert report["broken_differs"] is True


def test_a_recorded_map_is_in_force_before_the_first_request(
    model_of: Callable[[str], Path], reference: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    linear = Placement.linear(LAYERS, EXPERTS, 2, 5)
    wanted = Placement(np.ascontiguousarray(linear.slots[:, ::-1, ::-1]), EXPERTS)
    recorded = tmp_path / "map.json"
    recorded.write_text(json.dumps(as_expert_map(wanted)))
    config = write_config(tmp_path, balance__mode="static", balance__map=str(recorded))
    with daemon(config) as process:
        report = offline(
            tmp_path,
            f"ipc://{tmp_path}/w.sock",
            config=config,
            model=str(model_of("qwen3")),
            ranks=2,
            redundant=2,
            again=False,
        )
        process.line("static placement stands")
    opening = np.array(report["opening"], dtype=np.int32).reshape(wanted.slots.shape)
    assert np.array_equal(Placement(opening, EXPERTS).hosts(), wanted.hosts()), report["log"][
        -3000:
    ]
    assert report["tokens"] == reference("qwen3")["tokens"]
