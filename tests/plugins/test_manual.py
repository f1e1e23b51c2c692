"""The author's manual says what the code says: its policy, its hook, its figures."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from eplbd import Budget, Heat, Placement, Policy, Topology, hookspecs, rank_load
from eplbd.core.shares import TOLERANCE, WHOLE
from eplbd.plugins import ALIASES, Catalogue, Plugin
from eplbd.runtime.policyhost import LINES_PER_QUESTION, START_S
from eplbd.testing import LAWS, check_policy, problems
from eplbd_policies.greedy import Greedy
from eplbd_policies.random import Random

REPOSITORY = Path(__file__).parents[2]
MANUAL = (REPOSITORY / "plugins/README.md").read_text(encoding="utf-8")
POLICIES = (REPOSITORY / "policies/README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", MANUAL, re.DOTALL)


def bare(code: str) -> str:
    """Code without what only people and type checkers read."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.ImportFrom):
            node.names = []
    return ast.dump(tree)


def offered(folder: Path, code: str, name: str) -> type[Policy]:
    """A policy of the manual, as the daemon finds it."""
    file = folder / "my_policy.py"
    file.write_text(code)
    return Catalogue([Plugin("my_policy", str(file))]).find(name).policy


def test_the_first_policy_is_the_example_in_fifteen_lines(tmp_path: Path) -> None:
    code = blocks("python")[0]
    example = (REPOSITORY / "plugins/example-policy/eplbd_example_policy.py").read_text()
    assert bare(code) == bare(example)
    lines = [line for line in code.splitlines() if line and not line.startswith("from")]
    assert len(lines) == 15
    assert "fifteen lines" in MANUAL
    check_policy(offered(tmp_path, code, "example"))


def test_the_policy_with_shares_keeps_the_contract(tmp_path: Path) -> None:
    policy = offered(tmp_path, blocks("python")[1], "lean")
    check_policy(policy, large=False)
    current = Placement.linear(1, 4, 2, 3)
    heat = Heat(np.array([[[50, 10, 30, 10]]], dtype=np.int32), "all")
    budget = Budget(0, 0, deadline_s=1.0, expert_bytes=1, weighted=True)
    answer = policy().propose(heat, Topology.single_node(2, 3), current, budget)
    assert np.array_equal(answer.slots, current.slots)
    assert answer.shares is not None
    before, after = (rank_load(one, heat.total).max() for one in (current, answer))
    assert after < before


def test_the_policy_with_options_keeps_the_contract(tmp_path: Path) -> None:
    check_policy(offered(tmp_path, blocks("python")[2], "mine"), {"patience": 5}, large=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_manual_can_be_followed_word_by_word(tmp_path: Path) -> None:
    """Every file it shows is saved as it says, every command run as it stands."""
    example, _, _, tests = blocks("python")
    (tmp_path / "my_policy.py").write_text(example)
    (tmp_path / "test_my_policy.py").write_text(tests)
    told = {command: followed(command, tmp_path) for command in commands()}
    listing = next(text for command, text in told.items() if "policies" in command)
    (row,) = (line.split() for line in listing.splitlines() if line.startswith("example "))
    assert row == ["example", "my_policy", "-", "-", "1", "-", "-"]
    check = next(text for command, text in told.items() if " check " in command)
    assert check.rstrip().endswith("policy example of - - is ready")
    (toml,) = blocks("toml")
    assert toml in (tmp_path / "eplbd-policy-cool-down/pyproject.toml").read_text()
    run = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_policy.py")
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def commands() -> list[str]:
    """What the manual says at a prompt."""
    found = [line[2:] for block in blocks("console") for line in block.splitlines()]
    assert len(found) == 3
    return found


def followed(command: str, folder: Path) -> str:
    """Standard output of a command of the manual."""
    program, *words = command.split()
    assert program == "eplbd"
    run = (sys.executable, "-m", "eplbd", *words)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EPLBD_")}
    done = subprocess.run(
        run, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_laws_are_those_of_the_kit() -> None:
    for law, meaning in LAWS.items():
        assert f"| {law} | {meaning} |" in MANUAL
    assert f"within {TOLERANCE:g};" in MANUAL
    assert f"whole {WHOLE:,}" in MANUAL


def test_the_hooks_reference_is_its_docstring() -> None:
    doc = inspect.getdoc(hookspecs.eplbd_register_policies)
    assert doc is not None
    assert blocks("text") == [f"{doc}\n"]
    for question in ("When:", "Where:", "How long:", "If it raises:"):
        assert question in doc
    assert f"({START_S:g} seconds)" in doc


def test_the_figures_are_the_codes() -> None:
    assert f"{LINES_PER_QUESTION} lines per question" in MANUAL
    assert f"Starting may take {START_S:g} seconds" in MANUAL
    assert f"`eplbd_api = {hookspecs.API}`" in MANUAL
    asked = sum(1 for _ in problems())
    assert f"some {round(asked, -1)} questions" in MANUAL


def test_every_policy_and_option_has_its_row() -> None:
    for policy in (Greedy, Random):
        number = next(key for key, name in ALIASES.items() if name == policy.name)
        assert f"| `{policy.name}` | {number} |" in POLICIES
        for option in msgspec.structs.fields(policy.Options):
            default = msgspec.json.encode(option.default).decode()
            assert f"| `{option.name}` | {default} |" in POLICIES
