"""`eplbd share policy-template`: what it writes installs, passes its own tests and starts."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eplbd.cli import main
from eplbd.errors import ConfigError
from eplbd.share.template import write_policy_template

REPOSITORY = Path(__file__).resolve().parents[2]


def share(*words: str) -> Result:
    return CliRunner().invoke(main, ("share", "policy-template", *words))


def test_it_writes_a_whole_package(tmp_path: Path) -> None:
    target = tmp_path / "made"
    done = share("cool-down", str(target))
    assert done.exit_code == 0
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "eplbd_policy_cool_down.py",
        "pyproject.toml",
        "tests/test_eplbd_policy_cool_down.py",
    }
    assert sorted(done.output.splitlines()) == sorted(f"wrote {target / file}" for file in files)
    project = tomllib.loads((target / "pyproject.toml").read_text())["project"]
    assert project["name"] == "eplbd-policy-cool-down"
    points = project["entry-points"]["eplbd.policies"]
    assert points == {"cool-down": "eplbd_policy_cool_down"}


def test_it_depends_on_the_release_that_wrote_it(tmp_path: Path) -> None:
    write_policy_template("mine", tmp_path)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    example = tomllib.loads((REPOSITORY / "plugins/example-policy/pyproject.toml").read_text())
    assert project["dependencies"] == example["project"]["dependencies"]


def test_the_code_is_the_tutorials(tmp_path: Path) -> None:
    write_policy_template("mine", tmp_path)
    code = (tmp_path / "eplbd_policy_mine.py").read_text()
    tutorial = (REPOSITORY / "plugins/example-policy/eplbd_example_policy.py").read_text()
    for ours, theirs in (("class Mine", "class Example"), ('"mine"', '"example"')):
        code = code.replace(ours, theirs)
    assert code.replace("register(Mine)", "register(Example)") == tutorial


def test_by_default_the_directory_is_called_like_the_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert share("mine").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["eplbd-policy-mine"]


@pytest.mark.parametrize(
    "name", ["Mine", "my_policy", "2nd", "-x", "x-", "a--b", "", "a b", "a/b", "../x", "a$b"]
)
def test_a_name_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a policy; expected lower case"):
        write_policy_template(name, tmp_path / "made")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("hold", r"hold \(eplbd "),
        ("greedy", "vllm-ascend's policy 1"),
        ("example", r"example \(eplbd-example-policy "),
        ("flashlb", "vllm-ascend's policy 3"),
    ],
)
def test_a_name_that_is_taken_is_refused(tmp_path: Path, name: str, whose: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy `{name}` is there already: {whose}"):
        write_policy_template(name, tmp_path / "made")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("mine")
    done = share("mine", str(tmp_path))
    assert done.exit_code == 1
    assert done.output == f"Error: {tmp_path} holds something already; name another directory\n"
    assert [*tmp_path.iterdir()] == [file]
    assert file.read_text() == "mine"
    assert share("mine", str(file)).exit_code == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    assert share("mine", str(empty)).exit_code == 0


def run(*words: str | Path, cwd: Path, path: Path) -> str:
    """Standard output of a command that has to succeed, with `path` on the interpreter's."""
    done = subprocess.run(
        (sys.executable, *words),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_installs_passes_its_own_tests_and_starts(tmp_path: Path) -> None:
    made, site = tmp_path / "made", tmp_path / "site"
    write_policy_template("cool-down", made)
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--disable-pip-version-check", "--target", site, made, cwd=tmp_path, path=site)
    # Elsewhere than its sources: what is tested is what was installed.
    tests = tmp_path / "tests"
    (made / "tests").rename(tests)
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, cwd=tests, path=site)
    assert "2 passed" in told
    listed = run("-m", "eplbd", "policies", cwd=tmp_path, path=site)
    (row,) = (line.split() for line in listed.splitlines() if line.startswith("cool-down "))
    assert row == ["cool-down", "cool-down", "eplbd-policy-cool-down", "0.1.0", "1", "-", "-"]
    name = ("-o", "policy.name=cool-down")
    started = run("-m", "eplbd", "check", *name, cwd=tmp_path, path=site)
    assert "policy cool-down of eplbd-policy-cool-down 0.1.0 is ready" in started
