"""The configuration: precedence, origins, and the wording of every kind of refusal."""

import re
from pathlib import Path

import msgspec
import pytest

from eplbd.config import Config, load, stream_endpoints
from eplbd.errors import ConfigError
from eplbd.sources import locate

ANNOTATED = Path(__file__).parents[2] / "eplbd.toml"


def refusal(tmp_path: Path, text: str = "", env: dict[str, str] | None = None, **flags: str) -> str:
    """The text of the refusal, with the temporary folder's name cut out."""
    file = tmp_path / "eplbd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, env, flags)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_nothing_given_is_the_default() -> None:
    loaded = load()
    assert loaded.config == Config()
    assert {origin for _, _, origin in loaded.rows()} == {"default"}


def test_the_annotated_file_states_every_default() -> None:
    assert load(ANNOTATED).config == Config()
    keys = {path for path in locate(ANNOTATED.read_text()) if len(path) == 2}
    assert keys == {
        (section.name, key.name)
        for section in msgspec.structs.fields(Config)
        for key in msgspec.structs.fields(section.type)
    }


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "eplbd.toml"
    file.write_text(
        "# head\n[policy]\nname = 'random'\ndeadline_s = 3\nmemory_bytes = 300_000_000\n"
    )
    env = {"EPLBD_POLICY__NAME": "hold", "EPLBD_POLICY__DEADLINE_S": "4.5", "HOME": "/"}
    loaded = load(file, env, {"policy.name": "greedy"})
    assert loaded.config.policy.name == "greedy"
    assert loaded.config.policy.deadline_s == 4.5
    assert loaded.config.policy.memory_bytes == 300_000_000
    assert loaded.where("policy.name") == "-o policy.name=greedy"
    assert loaded.where("policy.deadline_s") == "EPLBD_POLICY__DEADLINE_S=4.5"
    assert loaded.where("policy.memory_bytes") == f"{file}:5"
    assert loaded.where("log.level") == "default"


def test_options_merge_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "eplbd.toml"
    file.write_text("[policy.options]\nseed = 1\nname = 'a'\n")
    loaded = load(file, {"EPLBD_POLICY__OPTIONS__SEED": "2"}, {"policy.options.mode": "fast"})
    assert loaded.config.policy.options == {"seed": 2, "name": "a", "mode": "fast"}
    assert ("policy.options.seed", 2, "EPLBD_POLICY__OPTIONS__SEED=2") in loaded.rows()


def test_shadows_have_tables_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "eplbd.toml"
    file.write_text(
        "[policy]\nshadow = ['random', 3, 'greedy']\n"
        "[policy.shadow_options.random]\nseed = 1\n[policy.shadow_options.greedy]\n"
    )
    env = {"EPLBD_POLICY__SHADOW_OPTIONS__RANDOM__SEED": "2"}
    loaded = load(file, env, {"policy.shadow_options.3.depth": "4"})
    assert loaded.config.policy.shadow == ("random", "3", "greedy")
    options = {"random": {"seed": 2}, "greedy": {}, "3": {"depth": 4}}
    assert loaded.config.policy.shadow_options == options
    rows = {path: (value, origin) for path, value, origin in loaded.rows()}
    origin = "EPLBD_POLICY__SHADOW_OPTIONS__RANDOM__SEED=2"
    assert rows["policy.shadow_options.random.seed"] == (2, origin)
    assert rows["policy.shadow_options.greedy"] == ({}, f"{file}:5")


def test_shadows_as_text_are_separated_by_commas() -> None:
    assert load(flags={"policy.shadow": "a, 2"}).config.policy.shadow == ("a", "2")


def test_a_number_of_vllm_ascend_is_a_name(tmp_path: Path) -> None:
    file = tmp_path / "eplbd.toml"
    file.write_text("policy = {name = 1}")
    assert load(file).config.policy.name == "1"


def test_lists_in_text_are_separated_by_commas() -> None:
    loaded = load(env={"EPLBD_PLUGINS__ENABLED": "a, b-*"}, flags={"plugins.modules": "m"})
    assert loaded.config.plugins.enabled == ("a", "b-*")
    assert loaded.config.plugins.modules == ("m",)


def test_an_empty_variable_turns_all_plugins_off(tmp_path: Path) -> None:
    file = tmp_path / "eplbd.toml"
    file.write_text("[plugins]\nmodules = ['m']\n")
    assert load(file, {"EPLBD_PLUGINS": ""}).config.plugins.enabled == ()
    assert load(file, {"EPLBD_PLUGINS": ""}).config.plugins.modules == ()
    assert load(file, {"EPLBD_PLUGINS": "x"}).config.plugins.modules == ("m",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "\n[policy]\ndeadline = 3 # soon\n",
            (
                "eplbd.toml:3: unknown key `deadline` in [policy]; did you mean `deadline_s`?\n"
                "    deadline = 3 # soon"
            ),
        ),
        (
            "[polcy]\nname = 'x'\n",
            "eplbd.toml:2: unknown section [polcy]; did you mean `policy`?\n    name = 'x'",
        ),
        (
            "[polcy]\n",
            "eplbd.toml:1: unknown section [polcy]; did you mean `policy`?\n    [polcy]",
        ),
        (
            "[policy]\ndeadline_s = -3\n",
            "eplbd.toml:2: policy.deadline_s: expected `float` > 0.0, got -3\n    deadline_s = -3",
        ),
        (
            "[policy]\ndeadline_s = nan\n",
            (
                "eplbd.toml:2: policy.deadline_s: expected `float` > 0.0, got nan\n"
                "    deadline_s = nan"
            ),
        ),
        (
            "[policy]\ndeadline_s = '3'\n",
            "eplbd.toml:2: policy.deadline_s: expected `float`, got '3'\n    deadline_s = '3'",
        ),
        (
            "[log]\nlevel = 'loud'\n",
            (
                "eplbd.toml:2: log.level: expected one of debug, info, warning, error, got 'loud'\n"
                "    level = 'loud'"
            ),
        ),
        (
            "[plugins]\nenabled = [\n 'a',\n 3,\n]\n",
            "eplbd.toml:2: plugins.enabled: expected `str`, got ['a', 3]\n    enabled = [",
        ),
        (
            "log = 3",
            "eplbd.toml:1: [log] is a table of keys, not a value\n    log = 3",
        ),
        (
            "[log\n",
            "eplbd.toml:1:5: not TOML: Expected ']' at the end of a table declaration\n    [log",
        ),
        (
            "[log]\nlevel = 'info'\nlevel = 'debug'\n",
            "eplbd.toml:3:16: not TOML: Cannot overwrite a value\n    level = 'debug'",
        ),
        ("[log]\nlevel = '''", "eplbd.toml: not TOML: "),
        (
            "[epoch]\nguard_forwards = 16\n",
            "eplbd.toml:2: epoch.guard_forwards = 16 (eplbd.toml:2) must be less than epoch.margin",
        ),
        (
            "[balance]\nwindow_steps = 10\n",
            "eplbd.toml:2: balance.min_steps = 64 (default) must not exceed balance.window_steps",
        ),
        (
            "[balance]\nmode = 'static'\n",
            "eplbd.toml:2: balance.mode = static needs balance.map, the file of",
        ),
        (
            "[balance]\nmap = 'x.npz'\n",
            (
                "eplbd.toml:2: balance.map is for balance.mode = static, the mode is dynamic "
                "(default): two authors"
            ),
        ),
        (
            "[policy]\nshadow = ['a', 'b', 'a']\n",
            "eplbd.toml:2: policy.shadow names `a` twice",
        ),
        (
            "[policy]\nshadow = ['swift']\n[policy.shadow_options.swfit]\nx = 1\n",
            (
                "eplbd.toml:4: `swfit` in [policy.shadow_options.swfit] is no shadow; did you "
                "mean `swift`?"
            ),
        ),
        (
            "[policy.shadow_options.swift]\n",
            (
                "eplbd.toml:1: `swift` in [policy.shadow_options.swift] is no shadow; name it in "
                "policy.shadow"
            ),
        ),
        (
            "[policy.shadow_options]\nswift = 3\n",
            "eplbd.toml:2: `policy.shadow_options.swift` is a table of options, not a value\n",
        ),
        ("[record]\nmax_bytes = 10\n", "eplbd.toml:2: record.max_bytes: expected `int` >= "),
        ("[session]\nsilence_s = 0.9\n", "eplbd.toml:2: session.silence_s = 0.9 ("),
        ("[epoch]\nresend_s = 2\n", "eplbd.toml:2: epoch.decide_timeout_s = 2.0 (def"),
        (
            "[daemon]\nsocket = 'tcp://*:5000'\n",
            (
                "eplbd.toml:2: daemon.socket = 'tcp://*:5000': tcp without encryption does not "
                "exist here; use ipc:// and a path; daemons of other nodes are reached through "
                "[cluster]"
            ),
        ),
        (
            "[cluster]\nlisten = 'udp://10.0.0.1:9477'\n",
            "eplbd.toml:2: cluster.listen = 'udp://10.0.0.1:9477': expected tcp://HOST:PORT, HOST",
        ),
        (
            "[cluster]\nlisten = 'tcp://0.0.0.0:9477'\n",
            (
                "eplbd.toml:2: cluster.listen = 'tcp://0.0.0.0:9477' is every address of this "
                "machine, which nobody can connect to: set cluster.advertise"
            ),
        ),
        (
            "[cluster]\nlisten = 'tcp://10.0.0.1:9477'\nadvertise = 'tcp://[::]:9477'\n",
            "eplbd.toml:3: cluster.advertise = 'tcp://[::]:9477': nobody can connect to that; name",
        ),
        (
            "[cluster]\nleader = 'tcp://10.0.0.1:9477'\nleader_key = 'short'\n",
            (
                "eplbd.toml:2: cluster.leader = 'tcp://10.0.0.1:9477': without cluster.listen this "
                "node is alone; set cluster.listen"
            ),
        ),
        (
            "[cluster]\nlisten = 'tcp://10.0.0.1:9477'\nleader = 'tcp://10.0.0.2:9477'\n",
            "eplbd.toml:3: cluster.leader says who leads only together with cluster.leader_key",
        ),
        (
            f"[cluster]\nleader = 'x'\nleader_key = '{'~' * 40}'\nlisten = 'tcp://h:1'\n",
            "eplbd.toml:2: cluster.leader = 'x': expected tcp://HOST:PORT",
        ),
        (
            f"[cluster]\nleader = 'tcp://h:2'\nleader_key = '{'~' * 40}'\nlisten = 'tcp://h:1'\n",
            "eplbd.toml:3: cluster.leader_key: expected a public key, 40 characters",
        ),
        ("[daemon]\nsocket = 'ipc://x'\n", "eplbd.toml:2: daemon.socket = 'ipc://x': expected ipc"),
        ("[daemon]\nsocket_mode = '660'\n", "eplbd.toml:2: daemon.socket_mode: expected `str` m"),
    ],
)
def test_a_refusal_names_the_place_and_the_fix(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal(tmp_path, text).startswith(expected)


def test_a_long_socket_path_is_refused_before_the_system_does(tmp_path: Path) -> None:
    text = f"[daemon]\nsocket = 'ipc:///{'x' * 107}'\n"
    assert "107 bytes" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("socket", "words"),
    [
        ("tcp://*:5000", "tcp without encryption does not exist here"),
        ("events.sock", "expected ipc:// followed by an absolute path"),
        (f"ipc:///{'x' * 100}", "107 bytes"),  # with what its second socket's name adds
    ],
)
def test_the_streams_socket_is_held_to_the_same(tmp_path: Path, socket: str, words: str) -> None:
    said = refusal(tmp_path, f"[stream]\nsocket = '{socket}'\n")
    assert "eplbd.toml:2: stream.socket = " in said
    assert words in said


def test_a_stream_without_a_socket_of_its_own_is_beside_the_workers() -> None:
    config = load(flags={"daemon.socket": "ipc:///somewhere/w.sock"}).config
    beside = "ipc:///somewhere/events.sock"
    assert stream_endpoints(config) == (beside, f"{beside}.replay")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = refusal(
        tmp_path, "[log]\nlevel = 1\nlvl = 2\n", {"EPLBD_EPOCH__RESEND_S": "soon"}, nothing="1"
    )
    assert re.findall(r"^(\S+): ", text, re.MULTILINE) == [
        "eplbd.toml:2",
        "eplbd.toml:3",
        "EPLBD_EPOCH__RESEND_S=soon",
    ]
    assert "-o nothing=1: unknown section [nothing]" in text


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("EPLBD_POLICY_NAME", "did you mean `EPLBD_POLICY__NAME`?"),
        ("EPLBD_LOG", "EPLBD_LOG__LEVEL"),
        ("EPLBD_POLICY__NAM", "did you mean `name`?"),
        ("EPLBD_POLCY__NAME", "did you mean `policy`?"),
        ("EPLBD_POLICY__NAME__X", "is one value"),
    ],
)
def test_a_variable_that_looks_like_a_setting_must_be_one(
    tmp_path: Path, name: str, hint: str
) -> None:
    text = refusal(tmp_path, env={name: "x"})
    assert text.startswith(f"{name}=x: ")
    assert hint in text


def test_variables_of_others_are_left_alone() -> None:
    env = {"EPLBD_SHARED": "/x", "EPLBD_DISABLE": "1", "EPLBD_BENCH_FULL": "1", "POLICY__NAME": "x"}
    assert load(env=env).config == Config()


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=f"{missing}: cannot be read: No such file"):
        load(missing)
    missing.write_bytes(b"x = '\xff'")
    with pytest.raises(ConfigError, match=f"{missing}: is not UTF-8 at byte 5"):
        load(missing)


def test_lines_are_found_whatever_the_style() -> None:
    text = (
        "policy.name = 'a'\n"
        "plugins.'enabled' = [\n"
        "  '[log]',  # level = 3\n"
        "]\n"
        "[ log ]\n"
        "\n"
        "level = '''\n"
        "[epoch]\n"
        "'''\n"
        "format = 'json'\n"
        "[balance] # three\n"
        "phase = 'all'\n"
    )
    lines = locate(text)
    assert lines["policy", "name"] == 1
    assert lines["plugins", "enabled"] == 2
    assert lines["log",] == 5
    assert lines["log", "level"] == 7
    assert lines["log", "format"] == 10
    assert lines["balance", "phase"] == 12
    assert ("epoch",) not in lines
