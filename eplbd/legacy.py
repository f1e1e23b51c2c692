"""What engines call the settings of their own balancers, said in the words of `eplbd.toml`.

Owns every key of vllm-ascend's `eplb_config`, of its older flat `additional_config`, and of vLLM's
`--eplb-config`: its type and bounds, what succeeds it here, and which combinations mean nothing.
Must not touch the configuration in force: mappings in, values and warnings out.

Their counters are iterations, ours are seconds, and no arithmetic turns one into the other without
the time of a forward. Where the operator states one, intervals are translated; where not, the
default stays and a warning says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eplbd.errors import ConfigError
from eplbd.sources import near

Value = str | int | float | bool

POLICIES = {0: "random", 1: "greedy", 2: "swift", 3: "flashlb"}
"""vllm-ascend's `eplb_policy_type`."""

_MOST_STEPS = 8192
_LONGEST_S = 86_400.0
_LEAST_STEPS = 64
"""Bounds of `balance.window_steps` and `interval_s`, and the default of `min_steps`."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a value of a key may be. least, most: of an integer. choices: of anything else."""

    kind: type
    least: int | None = None
    most: int | None = None
    choices: tuple[Value, ...] = ()
    reason: str = ""
    """Why less than `least` is refused, where it is not plain."""


_HANGS = "with 0 vllm-ascend's worker waits for ever for a plan that nobody asked for"
_PHASES = ("all", "prefill", "decode")

KEYS: Mapping[str, Key] = {
    # vllm-ascend's `eplb_config`
    "dynamic_eplb": Key(bool),
    "expert_heat_collection_interval": Key(int, least=1, reason=_HANGS),
    "algorithm_execution_interval": Key(int, least=1, reason=_HANGS),
    "num_redundant_experts": Key(int, least=0, most=1023),
    "eplb_policy_type": Key(int, choices=tuple(POLICIES)),
    "eplb_heat_collection_stage": Key(str, choices=_PHASES),
    "load_collection_phase": Key(str, choices=_PHASES),
    "expert_map_path": Key(str),
    "expert_map_record_path": Key(str),
    # flat in `additional_config` before there was an `eplb_config`
    "gate_eplb": Key(bool),
    # vLLM's `--eplb-config`
    "enable_eplb": Key(bool),
    "window_size": Key(int, least=1),
    "step_interval": Key(int, least=1),
    "log_balancedness": Key(bool),
    "log_balancedness_interval": Key(int, least=1),
    "use_async": Key(bool),
    "policy": Key(str, choices=("default",)),
    "communicator": Key(
        str, choices=("torch_nccl", "torch_gloo", "pynccl", "nixl", "torch_xccl", "xccl", "gloo")
    ),
    "enable_migration_batching": Key(bool),
    # environment variables that their documents name beside the keys
    "DYNAMIC_EPLB": Key(object),
    "EXPERT_MAP_RECORD": Key(object),
    "VLLM_ALLOW_EXPERT_LOAD_COLLECTING": Key(object),
    "PYTHONOPTIMIZE": Key(object),
}

ALIASES: Mapping[str, str] = {
    "num_iterations_eplb_update": "expert_heat_collection_interval",
    "num_wait_worker_iterations": "algorithm_execution_interval",
    "init_redundancy_expert": "num_redundant_experts",
    "eplb_window_size": "window_size",
    "eplb_step_interval": "step_interval",
    "eplb_log_balancedness": "log_balancedness",
}
"""Older names of the same settings."""

NOTES: Mapping[str, str] = {
    "algorithm_execution_interval": (
        "no forward waits for a plan here; policy.deadline_s bounds the policy, in seconds"
    ),
    "num_redundant_experts": "stays with the engine, which allocates the slots at start",
    "log_balancedness": "succeeded by the metrics and by one log line per epoch, always on",
    "log_balancedness_interval": "succeeded by the metrics and by one log line per epoch",
    "use_async": "experts always move beside the forwards; the engine's own mover is not used",
    "communicator": "the adapter's executor moves the weights; the engine's mover is not used",
    "enable_migration_batching": (
        "rounds always bound what a rank sends and receives; see transfer.bytes_per_round"
    ),
    "DYNAMIC_EPLB": "stays with the engine, which refuses dynamic_eplb without it",
    "EXPERT_MAP_RECORD": "stays with the engine; DYNAMIC_EPLB does as well",
    "VLLM_ALLOW_EXPERT_LOAD_COLLECTING": "has no effect in the engine either; leave it out",
    "PYTHONOPTIMIZE": "no child process is forked in the worker; leave it out",
}
"""Keys that no setting of eplbd corresponds to, and why."""

_REMEDY = "leave out what does not concern the balancing of experts"


@dataclass(frozen=True, slots=True)
class Translation:
    """Sections of `eplbd.toml`, and what the operator has to know besides."""

    settings: Mapping[str, Mapping[str, Value]]
    warnings: tuple[str, ...]

    def toml(self) -> str:
        """The settings as a fragment of `eplbd.toml`."""
        lines: list[str] = []
        for section, keys in self.settings.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
            lines.append("")
        return "\n".join(lines)


@dataclass(slots=True)
class _Draft:
    """A translation under way. given: canonical key to the name and value that were given."""

    given: dict[str, tuple[str, Value]]
    forward_s: float | None
    settings: dict[str, dict[str, Value]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __contains__(self, key: str) -> bool:
        return key in self.given

    def value(self, key: str) -> Value | None:
        return self.given[key][1] if key in self.given else None

    def name(self, key: str) -> str:
        return self.given[key][0]

    def put(self, path: str, value: Value) -> None:
        section, _, key = path.partition(".")
        self.settings.setdefault(section, {})[key] = value


def translate(given: Mapping[str, object], *, forward_s: float | None = None) -> Translation:
    """Say in eplbd's words what `given` asks an engine's balancer for.

    given: `eplb_config` itself, or what holds one (`--additional-config`), or flat older keys, or
    vLLM's `--eplb-config`. Keys that lie beside an `eplb_config` and mean something else are passed
    over. forward_s: seconds of a forward, to turn counts of forwards into times.

    Raises:
        ConfigError: every unknown key with its near match, every value out of bounds, every
            combination that could not work, each with the reason.
    """
    found, problems = _canonical(given)
    if problems:
        raise ConfigError("\n".join(problems))
    draft = _Draft(found, forward_s)
    for rule in (_window, _interval, _policy, _phase, _mode, _notes):
        rule(draft)
    if draft.problems:
        raise ConfigError("\n".join(draft.problems))
    return Translation(draft.settings, tuple(draft.warnings))


def spelled(text: str) -> dict[str, object]:
    """The mapping that `text` is, as JSON, or that the JSON file of that name holds.

    Raises:
        ConfigError: it cannot be read, or is no JSON object.
    """
    origin = "the given JSON" if text.lstrip().startswith(("{", "[")) else text
    try:
        given = json.loads(text if origin != text else Path(text).read_bytes())
    except OSError as error:
        raise ConfigError(f"{origin}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{origin}: not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{origin}: expected a JSON object, got {type(given).__name__}")
    return given


# --- what was given -----------------------------------------------------------------------------


def _canonical(given: Mapping[str, object]) -> tuple[dict[str, tuple[str, Value]], list[str]]:
    found: dict[str, tuple[str, Value]] = {}
    problems: list[str] = []
    for name, value in _flattened(given, problems):
        key = ALIASES.get(name, name)
        complaint = _complaint(name, value, KEYS[key])
        if complaint:
            problems.append(complaint)
        elif isinstance(value, str | int | float):
            if key in found and found[key][1] != value:
                problems.append(
                    f"{name} = {value!r} contradicts {found[key][0]} = {found[key][1]!r}: "
                    "two names of one setting; keep one"
                )
            found.setdefault(key, (name, value))
    return found, problems


def _flattened(given: Mapping[str, object], problems: list[str]) -> Iterator[tuple[str, object]]:
    """Yield the known keys of `given`, whatever holds them; None says that a key is not given."""
    known = [*KEYS, *ALIASES]
    nested = {"eplb_config", "eplb-config", "additional_config", "additional-config"} & {*given}
    for name, value in given.items():
        if name in nested:
            if isinstance(value, Mapping):
                yield from _flattened(value, problems)
            elif value is not None:
                problems.append(f"{name}: expected a table of keys, got {value!r}")
        elif name in known:
            if value is not None:
                yield name, value
        elif not nested or near(name, known):
            problems.append(f"unknown key `{name}`{near(name, known) or '; ' + _REMEDY}")


def _complaint(name: str, value: object, key: Key) -> str:
    if key.kind is object:
        return "" if isinstance(value, str | int) else f"{name}: expected a text, got {value!r}"
    if type(value) is not key.kind:
        return f"{name}: expected {_KINDS[key.kind]}, got {value!r}"
    if key.choices and value not in key.choices:
        hint = near(str(value), map(str, key.choices))
        return f"{name}: expected one of {', '.join(map(str, key.choices))}, got {value!r}{hint}"
    if isinstance(value, str):
        wrong = name.endswith("_path") and not value.endswith(".json")
        return f"{name}: expected the path of a .json file, got {value!r}" if wrong else ""
    return _out_of_bounds(name, value, key) if isinstance(value, int) else ""


def _out_of_bounds(name: str, value: int, key: Key) -> str:
    if key.least is not None and value < key.least:
        because = f": {key.reason}" if key.reason else ""
        return f"{name}: expected at least {key.least}, got {value}{because}"
    if key.most is not None and value > key.most:
        return f"{name}: expected at most {key.most}, got {value}"
    return ""


_KINDS: Mapping[type, str] = {bool: "true or false", int: "a whole number", str: "a text"}


# --- what it means ------------------------------------------------------------------------------


def _one_of(draft: _Draft, keys: tuple[str, ...], what: str) -> str | None:
    """Return the key of `keys` that is given; two that disagree are a problem."""
    present = [key for key in keys if key in draft]
    values = {draft.value(key) for key in present}
    if len(values) > 1:
        said = " and ".join(f"{draft.name(key)} = {draft.value(key)!r}" for key in present)
        draft.problems.append(f"{said} name two {what}; keep the one of your engine")
    return present[0] if present else None


def _window(draft: _Draft) -> None:
    key = _one_of(draft, ("expert_heat_collection_interval", "window_size"), "windows")
    if key is None:
        return
    steps = int(draft.given[key][1])
    name = draft.name(key)
    if steps > _MOST_STEPS:
        draft.warnings.append(
            f"{name} = {steps}: balance.window_steps holds at most {_MOST_STEPS} steps, newest last"
        )
        steps = _MOST_STEPS
    else:
        draft.warnings.append(f"{name} is succeeded by balance.window_steps = {steps}")
    draft.put("balance.window_steps", steps)
    if steps < _LEAST_STEPS:
        draft.put("balance.min_steps", steps)


def _interval(draft: _Draft) -> None:
    """Theirs is a period in forwards: heat and planning of vllm-ascend, `step_interval` of vLLM."""
    parts = ("expert_heat_collection_interval", "algorithm_execution_interval")
    names = [key for key in (*parts, "step_interval") if key in draft]
    if draft.value("gate_eplb"):
        draft.put("balance.interval_s", _LONGEST_S)
        draft.warnings.append(
            f"{draft.name('gate_eplb')} balances once; the nearest is balance.interval_s = "
            f"{_LONGEST_S}, at most one rebalance a day. Without it eplbd stops by itself where "
            "moving would not pay (balance.min_gain, balance.horizon_s)"
        )
        return
    forwards = sum(int(draft.given[key][1]) for key in names)
    if not forwards:
        return
    said = " + ".join(draft.name(key) for key in names)
    if draft.forward_s is None:
        draft.warnings.append(
            f"{said}: {forwards} forwards are no time; balance.interval_s keeps its default until "
            "the time of a forward is stated"
        )
        return
    seconds = min(max(round(forwards * draft.forward_s, 3), 0.001), _LONGEST_S)
    draft.put("balance.interval_s", seconds)
    draft.warnings.append(f"{said} is succeeded by balance.interval_s = {seconds}")


def _policy(draft: _Draft) -> None:
    if "eplb_policy_type" in draft and "policy" in draft:
        draft.problems.append(
            "eplb_policy_type is vllm-ascend's and policy is vLLM's; keep the one of your engine"
        )
    elif "eplb_policy_type" in draft:
        number = int(draft.given["eplb_policy_type"][1])
        draft.put("policy.name", POLICIES[number])
        draft.warnings.append(
            f"eplb_policy_type = {number} is succeeded by policy.name = {POLICIES[number]!r}"
        )
    elif "policy" in draft:
        draft.put("policy.name", "greedy")
        draft.warnings.append("policy = 'default' is succeeded by policy.name = 'greedy'")


def _phase(draft: _Draft) -> None:
    keys = ("eplb_heat_collection_stage", "load_collection_phase")
    key = _one_of(draft, keys, "phases")
    if key is not None:
        draft.put("balance.phase", draft.given[key][1])
        draft.warnings.append(f"{key} is succeeded by balance.phase; leave it at all in the engine")


def _mode(draft: _Draft) -> None:
    path, record = draft.value("expert_map_path"), draft.value("expert_map_record_path")
    dynamic = draft.value("dynamic_eplb")
    if path is not None and record is not None:
        draft.problems.append(
            "expert_map_path and expert_map_record_path: a map is put in force or recorded, not "
            "both; record first, then serve with what was recorded"
        )
    elif record is not None:
        folder = str(record).removesuffix(".json")
        draft.put("balance.mode", "record")
        draft.put("record.dir", folder)
        draft.warnings.append(
            "expert_map_record_path is succeeded by balance.mode = 'record' and record.dir = "
            f"{folder!r}; `eplbd convert` makes {record} of the newest proposal there. Leave it "
            "out in the engine and set dynamic_eplb there"
        )
    elif path is not None and dynamic:
        draft.put("balance.mode", "dynamic")
        draft.warnings.append(
            "expert_map_path beside dynamic_eplb is where the engine starts from; it stays with "
            "the engine, and eplbd takes over from there"
        )
    elif path is not None:
        draft.put("balance.mode", "static")
        draft.put("balance.map", path)
        draft.warnings.append(
            "expert_map_path is succeeded by balance.mode = 'static' and balance.map; leave it out "
            "in the engine and set dynamic_eplb and num_redundant_experts there"
        )
    elif dynamic is not None or "enable_eplb" in draft:
        _switch(draft, "dynamic_eplb" if dynamic is not None else "enable_eplb")


def _switch(draft: _Draft, key: str) -> None:
    on = bool(draft.value(key))
    draft.put("balance.mode", "dynamic" if on else "hold")
    if on:
        draft.warnings.append(f"{key} stays with the engine: eplbd balances the slots it makes")
    else:
        draft.warnings.append(f"without {key} the engine offers nothing to balance")


def _notes(draft: _Draft) -> None:
    for key, (name, _) in draft.given.items():
        if key in NOTES:
            draft.warnings.append(f"{name}: {NOTES[key]}")
        elif name != key and not any(name in warning for warning in draft.warnings):
            draft.warnings.append(f"{name} is now {key}")
