"""Nothing that is compiled reads or writes out of bounds: asked with every index checked.

Not the whole suite runs so: every compiled policy is asked a few questions of each kind. The
interpreter checks each index of what numba would compile, in seconds where compiling with checks
takes minutes; an index below zero counts from the end in both, and is not seen by either. Faults
seeded into a copy show that it would be noticed. `test_flashlb` runs the two policies that compile
fast with numba's own checks as well.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eplbd_policies

PACKAGE = Path(eplbd_policies.__file__).parent
COMPILED = ("incremental", "auto", "swift", "flashlb")

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import eplbd_policies
from eplbd import Budget, Heat, Placement, Topology
from tests.policies.asked import counts, new, start

assert Path(eplbd_policies.__file__).parent == Path(sys.argv[1]), eplbd_policies.__file__
policy = new(sys.argv[2])
free, tight = Budget(None, None, 10.0, 1), Budget(3, None, 10.0, 1)
shares = Budget(None, None, 10.0, 1, weighted=True)
for experts, ranks, slots in [(8, 4, 6), (30, 7, 5), (66, 11, 7), (4, 1, 4)]:
    steps = counts(1, experts, 80 if experts == 8 else 17)
    extreme = np.zeros_like(steps[:3])
    extreme[:, 0, 0] = 100_000
    placement = start(1, experts, ranks, slots)
    topology = Topology(ranks, slots, tuple(rank * 2 // ranks for rank in range(ranks)))
    for window, budget in [(steps, tight), (extreme, free), (steps, shares)]:
        window.setflags(write=False)
        placement = policy.propose(Heat(window, "all"), topology, placement, budget)
twice = Placement(np.array([[[0, 1, 2, 0], [0, 3, 1, 0]]], np.int32), 4)
for budget in (free, tight, shares):  # expert 0 is in more slots than there are ranks
    heat = Heat(counts(1, 4, 17), "all")
    heat.steps.setflags(write=False)
    policy.propose(heat, Topology.single_node(2, 4), twice, budget)
"""

FAULTS = (  # policy, module, line, and the line that reaches one too far
    ("incremental", "board", "for slot in range(per_rank):", "for slot in range(per_rank + 1):"),
    ("incremental", "fresh", "for rank in range(ranks):", "for rank in range(ranks + 1):"),
    (
        "incremental",
        "weigh",
        "for expert in range(experts):",
        "for expert in range(experts + 1):",
    ),
    ("auto", "search", "for rank in range(ranks):", "for rank in range(ranks + 1):"),
    ("swift", "swift", "for rank in range(ranks):", "for rank in range(ranks + 1):"),
    ("flashlb", "flashtree", "for a in range(experts):", "for a in range(experts + 1):"),
)


def run(policy: str, package: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Ask a policy of the copy at `package` in a process whose indices are checked."""
    paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(package), policy],
        env={
            **os.environ,
            "NUMBA_DISABLE_JIT": "1",
            "NUMBA_CACHE_DIR": str(cache),
            "PYTHONPATH": os.pathsep.join(paths),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("policy", COMPILED)
def test_no_index_is_out_of_bounds(policy: str, tmp_path: Path) -> None:
    done = run(policy, PACKAGE, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("policy", "module", "line", "faulty"), FAULTS)
def test_one_that_is_would_be_noticed(
    policy: str, module: str, line: str, faulty: str, tmp_path: Path
) -> None:
    package = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    source = package / f"{module}.py"
    text = source.read_text()
    assert line in text
    source.write_text(text.replace(line, faulty))
    done = run(policy, package, tmp_path / "cache")
    assert done.returncode != 0
    assert "IndexError" in done.stderr, done.stderr[-2000:]
