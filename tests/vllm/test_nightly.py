"""What takes minutes offline: more ranks, compiled models. For servers: `test_serve.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    assert report["tokens"] == expected["tokens"]
    assert report["differing"] == 0, f"{report['differing']} of {report['rounds']} rounds"
    assert report["broken_differs"] is True
