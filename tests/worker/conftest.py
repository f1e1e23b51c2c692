"""The stages on which scenarios are played, one per executor that this machine has."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.ranks import ProcessStage, Setting, Stage, ThreadStage

KINDS = (
    pytest.param("memory"),
    pytest.param("gloo", marks=pytest.mark.slow),
    pytest.param("gloo-host", marks=pytest.mark.slow),
    pytest.param("cuda", marks=pytest.mark.slow),
    pytest.param("cuda-host", marks=pytest.mark.slow),
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave torch unimported, two seconds, where its tests are deselected anyway."""
    deselected = config.getoption("markexpr") == "not slow"
    return True if deselected and collection_path.name.startswith("test_torch_") else None


@pytest.fixture(scope="session")
def process_stage() -> Iterator[ProcessStage]:
    stage = ProcessStage()
    yield stage
    stage.stop()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which executor; those of devices that are not here are skipped by name."""
    name: str = request.param
    if "cuda" in name:
        import torch

        needed = 1 if "host" in name else 4
        if torch.cuda.device_count() < needed:
            pytest.skip(f"{name}: {torch.cuda.device_count()} CUDA devices here, {needed} needed")
    return name


@pytest.fixture
def stage(kind: str, request: pytest.FixtureRequest) -> Stage:
    if kind == "memory":
        return ThreadStage()
    stage: ProcessStage = request.getfixturevalue("process_stage")
    return stage


@pytest.fixture
def setting(kind: str) -> Setting:
    return Setting(kind)
