"""What tests of a real vLLM share: whether there is one, tiny models, the tokens of one rank."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engines import ABSENT, BIN, offline


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What cannot run here, or takes long and was not asked for, is named in the summary."""
    absent = "" if list(BIN.parent.glob(".made-*")) else _why_absent()
    for item in items:
        reason = ""
        if item.get_closest_marker("nightly") and os.environ.get("EPLBD_NIGHTLY") != "1":
            reason = "takes minutes: `make test-vllm`"
        elif item.get_closest_marker("vllm") and absent:
            reason = f"no real vLLM here: {absent}"
        if reason:
            # With its name: those of one reason are told together, in one line.
            item.add_marker(pytest.mark.skip(reason=f"{item.name}: {reason}"))


def _why_absent() -> str:
    """What the set-up left behind where it failed."""
    try:
        return ABSENT.read_text(encoding="utf-8").strip()
    except OSError:
        return "`make setup-vllm` installs it"


@pytest.fixture(scope="session")
def vllm() -> Path:
    """Python of the environment that has vLLM."""
    return BIN / "python"


@pytest.fixture(scope="session")
def model_of(vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a tiny random model of a shape, once."""
    folder = tmp_path_factory.mktemp("models")

    def write(shape: str) -> Path:
        target = folder / shape
        if not target.exists():
            subprocess.run([vllm, "-m", "eplbd_vllm.demo.torch_tiny", shape, target], check=True)
        return target

    return write


@pytest.fixture(scope="session")
def reference(
    model_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """What vLLM alone reports, without expert parallelism and eplbd; once for each shape.

    Of one rank, and for the latent attention of `deepseek` of two: on a CPU that gives other tokens
    in two ranks than in one, whatever its experts do.
    """
    found: dict[str, dict[str, Any]] = {}

    def report(shape: str) -> dict[str, Any]:
        if shape not in found:
            folder = tmp_path_factory.mktemp(f"{shape}-reference")
            nobody = f"ipc://{folder}/nobody.sock"
            found[shape] = offline(
                folder,
                nobody,
                alone=True,
                model=str(model_of(shape)),
                ranks=2 if shape == "deepseek" else 1,
                experts=False,
            )
        return found[shape]

    return report
