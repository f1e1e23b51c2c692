"""The command line: what it prints, its statuses, and that it imports nothing it does not need."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eplbd.cli import main
from eplbd.core.placement import Placement
from eplbd.traces.placements import save_placement

GUESTS = Path(__file__).parents[1] / "plugins" / "guests"


def run(*words: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, words, env=env)


def test_version_is_the_distributions() -> None:
    assert run("--version").output == f"eplbd, version {metadata.version('eplbd')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "polcy.name=x"), "-o polcy.name=x: unknown section [polcy]; did you mean"),
        (("-o", "policy.name"), "-o policy.name: expected section.key=value"),
        (("--config", "/nowhere.toml"), "/nowhere.toml: cannot be read: No such file"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_1(words: tuple[str, ...], message: str) -> None:
    done = run("check", *words)
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {message}")


@pytest.mark.slow
def test_check_starts_the_shadows_and_reads_the_map(tmp_path: Path) -> None:
    placement = Placement.linear(2, 4, 2, 3)
    save_placement(tmp_path / "map.npz", placement)
    file = tmp_path / "eplbd.toml"
    file.write_text(
        "[policy]\nname = 'hold'\nshadow = ['random', 'greedy']\n"
        "[policy.shadow_options.random]\nseed = 5\n"
        f"[balance]\nmode = 'static'\nmap = '{tmp_path / 'map.npz'}'\n"
    )
    done = run("check", "--config", str(file))
    rows = [line.split() for line in done.output.splitlines()]
    version = metadata.version("eplbd-policies")
    assert ["policy.shadow_options.random.seed", "5", f"{file}:5"] in rows
    assert done.output.splitlines()[-4:] == [
        f"map of 2 x 2 x 3 slots, 4 experts, digest {placement.digest} is ready",
        f"policy hold of eplbd {version} is ready",
        f"shadow random of eplbd-policies {version} is ready",
        f"shadow greedy of eplbd-policies {version} is ready",
    ]
    assert done.exit_code == 0


@pytest.mark.slow
def test_check_prints_origins_and_starts_the_policy(tmp_path: Path) -> None:
    file = tmp_path / "eplbd.toml"
    file.write_text("[policy]\nname = 'random'\n[policy.options]\nseed = 5\n")
    env = {"EPLBD_LOG__LEVEL": "debug", "EPLBD_CONFIG": str(file)}
    done = run("check", "-o", "balance.max_moves=7", env=env)
    rows = [line.split() for line in done.output.splitlines()]
    assert ["policy.name", '"random"', f"{file}:2"] in rows
    assert ["policy.options.seed", "5", f"{file}:4"] in rows
    assert ["log.level", '"debug"', "EPLBD_LOG__LEVEL=debug"] in rows
    assert ["balance.max_moves", "7", "-o", "balance.max_moves=7"] in rows
    assert ["log.format", '"auto"', "default"] in rows
    version = metadata.version("eplbd-policies")
    assert done.output.endswith(f"\npolicy random of eplbd-policies {version} is ready\n")
    assert done.exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "policy.name=gredy",
            "-o policy.name=gredy: unknown policy `gredy`; did you mean `greedy`?",
        ),
        ("policy.name=4", "unknown policy `4`"),
        (
            "policy.options.x=1",
            "policy.options.x: `incremental` has no such option; known: move_cost",
        ),
        ("policy.options.min_gain=2", "policy.options.min_gain: Expected `float` <= 1.0, got 2"),
        ("policy.shadow=hold,gredy", "unknown policy `gredy`; did you mean `greedy`?"),
        ("plugins.enabled=gredy", "no installed plugin is called `gredy`; did you mean `greedy`?"),
    ],
)
def test_check_finds_what_only_the_policy_child_knows(setting: str, message: str) -> None:
    done = run("check", "-o", setting)
    assert done.exit_code == 1
    error = done.output.partition("Error: ")[2]
    assert error.startswith(f"-o {setting}: ")
    assert message in error


@pytest.mark.slow
def test_policies_shows_provenance_and_errors() -> None:
    done = run("policies", "-o", f"plugins.modules={GUESTS / 'unimportable.py'}")
    rows = {line.split()[1]: line.split(maxsplit=6) for line in done.output.splitlines()}
    version = metadata.version("eplbd-policies")
    assert rows["greedy"] == ["greedy", "greedy", "eplbd-policies", version, "1", "-", "-"]
    assert rows["hold"][2] == "eplbd"
    assert rows["unimportable"][0] == "-"
    assert rows["unimportable"][6].startswith("ModuleNotFoundError")
    assert done.exit_code == 0


@pytest.mark.slow
def test_with_plugins_off_only_hold_is_left() -> None:
    done = run("policies", env={"EPLBD_PLUGINS": ""})
    assert [line.split()[0] for line in done.output.splitlines()] == ["policy", "hold"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import eplbd", "torch anyio asyncio zmq structlog numba"),
        ("import eplbd.cli", "torch anyio asyncio zmq structlog numba"),
        ("import eplbd.policyproc", "torch anyio asyncio zmq structlog numba"),
        ("import eplbd.runtime.policyhost", "torch zmq numba eplbd_policies"),
        ("import eplbd_policies.greedy, eplbd_policies.random", "torch anyio zmq structlog"),
    ],
)
def test_imports_are_lean(code: str, unwanted: str) -> None:
    program = f"import sys; {code}; print(*set({unwanted.split()}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().strip() == ""


def test_the_root_offers_few_names_and_all_of_them() -> None:
    import eplbd

    assert len(eplbd.__all__) <= 15
    assert all(hasattr(eplbd, name) for name in eplbd.__all__)
