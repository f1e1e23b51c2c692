"""The author's manual says what the code says: its policy, its hook, its figures."""

import inspect
import re
from pathlib import Path

import msgspec

from eplbd import hookspecs
from eplbd.plugins import ALIASES, Catalogue, Plugin
from eplbd.runtime.policyhost import LINES_PER_QUESTION, START_S
from eplbd.testing import check_policy, problems
from eplbd_policies.greedy import Greedy
from eplbd_policies.random import Random

REPOSITORY = Path(__file__).parents[2]
MANUAL = (REPOSITORY / "plugins/README.md").read_text(encoding="utf-8")
POLICIES = (REPOSITORY / "policies/README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", MANUAL, re.DOTALL)


def test_the_first_policy_is_the_example_and_runs(tmp_path: Path) -> None:
    code = blocks("python")[0]
    assert code == (REPOSITORY / "plugins/example-policy/eplbd_example_policy.py").read_text()
    file = tmp_path / "my_policy.py"
    file.write_text(code)
    check_policy(Catalogue([Plugin("my_policy", str(file))]).find("example").policy)


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
