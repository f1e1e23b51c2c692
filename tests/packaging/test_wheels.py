"""The four wheels: what is in them, and that they work where nothing else is installed.

In a checkout the repository root is on the path, so that a file missing from a wheel, or a folder
that should not be importable, goes unnoticed. Here the wheels stand alone, without torch.
"""

import email
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[2]
CONSTRAINTS = REPOSITORY / "constraints.txt"
# Distribution: the folder of its pyproject, and the only name it may put into site-packages.
DISTRIBUTIONS = {
    "eplbd": ("", "eplbd"),
    "eplbd-policies": ("policies", "eplbd_policies"),
    "eplbd-vllm": ("plugins/vllm", "eplbd_vllm"),
    "eplbd-example-policy": ("plugins/example-policy", "eplbd_example_policy.py"),
}
NO_CODE = {".pyc", ".nbi", ".nbc"}


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that has to succeed, run where the checkout is not in sight."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each distribution's wheel, built by the pinned backend of this environment."""
    built = {}
    for name, (folder, _) in DISTRIBUTIONS.items():
        out = tmp_path_factory.mktemp(name)
        source = REPOSITORY / folder
        run(
            *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source),
            cwd=out,
        )
        (built[name],) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment with the four wheels and what they require, nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "venv/bin/python")
    run(*pip, "install", "--quiet", "-c", CONSTRAINTS, *wheels.values(), cwd=folder)
    return folder / "venv/bin"


def source_files(folder: str, top: str) -> set[str]:
    """What the wheel has to hold, by its name in the wheel."""
    home = REPOSITORY / folder
    found = [home / top] if top.endswith(".py") else (home / top).rglob("*")
    return {
        path.relative_to(home).as_posix()
        for path in found
        if path.is_file() and path.suffix not in NO_CODE
    }


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_wheel_holds_its_package_whole_and_nothing_else(
    name: str, wheels: Mapping[str, Path]
) -> None:
    folder, top = DISTRIBUTIONS[name]
    packed = set(zipfile.ZipFile(wheels[name]).namelist())
    metadata = {path for path in packed if ".dist-info/" in path}
    assert packed - metadata == source_files(folder, top)
    assert any(path.endswith(".dist-info/licenses/LICENSE") for path in metadata)
    if not top.endswith(".py"):
        assert f"{top}/py.typed" in packed


def test_the_daemons_wheel_brings_its_protocol(wheels: Mapping[str, Path]) -> None:
    assert "eplbd/wire/PROTOCOL.md" in zipfile.ZipFile(wheels["eplbd"]).namelist()


def test_the_four_carry_one_version(wheels: Mapping[str, Path]) -> None:
    versions = {}
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            (path,) = (p for p in archive.namelist() if p.endswith(".dist-info/METADATA"))
            versions[name] = email.message_from_bytes(archive.read(path))["Version"]
    root = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert versions == dict.fromkeys(DISTRIBUTIONS, root["project"]["version"])


def test_they_import_where_nothing_else_is_installed(clean: Path) -> None:
    program = """
import importlib, importlib.util, pkgutil
import eplbd, eplbd_example_policy, eplbd_policies, eplbd_vllm
for package in (eplbd, eplbd_policies, eplbd_vllm):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        needs_torch = module.name.startswith("eplbd.demo.") or module.name.endswith(".selection")
        needs_torch |= module.name.rpartition(".")[2].startswith("torch_")
        on_a_terminal = module.name in ("eplbd.top.app", "eplbd.top.colours", "eplbd.top.question")
        if not needs_torch and not on_a_terminal and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
absent = ("torch", "rich", "policies", "plugins", "tests")
found = [name for name in absent if importlib.util.find_spec(name)]
print(eplbd.__file__, found)
"""
    where, _, found = run(clean / "python", "-c", program, cwd=clean).strip().partition(" ")
    assert Path(where).is_relative_to(clean.parent), "the checkout's eplbd answered"
    assert found == "[]"


def test_the_command_works_there(clean: Path) -> None:
    assert "0.1.0" in run(clean / "eplbd", "--version", cwd=clean)
    table = run(clean / "eplbd", "policies", cwd=clean)
    for policy, distribution in (
        ("hold", "eplbd"),
        ("random", "eplbd-policies"),
        ("greedy", "eplbd-policies"),
        ("example", "eplbd-example-policy"),
    ):
        (row,) = (line for line in table.splitlines() if line.split()[:1] == [policy])
        assert distribution in row, table


def test_vllm_finds_the_plugin_and_it_is_light(clean: Path) -> None:
    program = """
import importlib.metadata as m, sys
(point,) = m.entry_points(group="vllm.general_plugins")
point.load()
print(point.value, [name for name in ("torch", "vllm", "zmq") if name in sys.modules])
"""
    said = run(clean / "python", "-c", program, cwd=clean).strip()
    assert said == "eplbd_vllm.plugin:register []"
