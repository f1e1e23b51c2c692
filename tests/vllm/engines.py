"""Offline engines for the tests: `engine/offline.py` in processes of its own, and its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eplbd_vllm.demo.engines import environment, free_port, started

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = REPOSITORY / ".venv-vllm/bin"
ABSENT = REPOSITORY / ".make/no-vllm"
"""Why `make test` could not install it; there only if so."""
OFFLINE = Path(__file__).with_name("engine") / "offline.py"


def offline(
    folder: Path,
    endpoint: str,
    *,
    alone: bool = False,
    config: Path | None = None,
    prefix: Sequence[str] = (),
    **spec: object,
) -> dict[str, Any]:
    """Run it to its end; the report has what it said as `log`. spec: as `Spec` there.

    alone: with eplbd switched off. config: the daemon's file. prefix: of the command.
    """
    ranks = spec.get("ranks", 1)
    report, log = folder / f"report{ranks}.json", folder / f"offline{ranks}.log"
    command: list[str | Path] = [*prefix, BIN / "python"]
    if ranks != 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command += ["--master-port", str(free_port())]
    env = environment(endpoint, EPLBD_TEST_REPORT=str(report), VLLM_ENABLE_V1_MULTIPROCESSING="0")
    if alone:
        env["EPLBD_DISABLE"] = "1"
    if config is not None:
        env["EPLBD_CONFIG"] = str(config)
    with started([*command, OFFLINE, json.dumps(spec)], log, env) as engine:
        assert engine.wait() == 0, engine.story()
        found: dict[str, Any] = json.loads(report.read_text())
        return found | {"log": log.read_text(errors="replace")}
