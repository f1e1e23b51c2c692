"""Without the extra: one sentence that says what to install, and everything else works."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eplbd.core.placement import Placement
from eplbd.traces.archive import HeatTrace, save_trace
from eplbd.traces.placements import save_placement
from tests.offline.makings import skewed

pytestmark = pytest.mark.slow

WITHOUT = """
import sys
for absent in ("matplotlib", "jinja2", "yaml", "safetensors", "rich", "torch"):
    sys.modules[absent] = None
from eplbd.cli import main
main(sys.argv[1:])
"""


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.npz"
    heat = skewed(6, 2, 16, sigma=1, tokens=400).astype(np.int64)
    save_trace(path, HeatTrace(heat, 2, ("",) * 6, {}))
    return path


def test_figures_need_no_extra(trace: Path, tmp_path: Path) -> None:
    for arguments in (
        ("simulate", trace, "--ranks", 4),
        ("diagnose", trace, "--ranks", 4),
    ):
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
    save_placement(tmp_path / "map.npz", Placement.linear(2, 8, 4, 3))
    done = call("convert", tmp_path / "map.npz", tmp_path / "map.json", "--to", "ascend-map")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plot", "{trace}", "{out}.png"), "matplotlib, which is not installed; pip install"),
        (("simulate", "{trace}", "--ranks", "4", "--report", "{out}.html"), "not installed"),
        (("convert", "{yaml}", "{out}.npz", "--ranks", "2"), "YAML needs yaml"),
        (("convert", "{pt}", "{out}.npz"), "needs torch, which is not installed"),
    ],
)
def test_what_is_missing_is_one_sentence(
    trace: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    names = {"trace": trace, "out": tmp_path / "out"}
    for suffix in ("yaml", "pt"):
        names[suffix] = tmp_path / f"in.{suffix}"
        names[suffix].touch()
    done = call(*(argument.format(**names) for argument in arguments))
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
