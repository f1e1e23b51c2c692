"""What the operator decides: where each value comes from, and whether all of it makes sense.

Owns the order of precedence (flag over environment over file over default) and what cannot be meant
together; the keys themselves are in `sections`. Knows nothing of what a value does: no socket is
opened here and no policy is imported, so options of policies are only carried; the policy child
validates them.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from eplbd.errors import ConfigError
from eplbd.sections import (
    Alarms,
    Balance,
    Cluster,
    Config,
    Control,
    Daemon,
    Epoch,
    Log,
    Metrics,
    Plugins,
    Policy,
    Record,
    Session,
    Stream,
    Transfer,
    control_endpoint,
    stream_endpoints,
)
from eplbd.sources import TABLES, Given, as_list, as_toml, from_env, from_file, from_flags, near
from eplbd.tcp import TCP_FORM, is_key, is_wildcard, tcp_host

__all__ = [
    "SYSTEM_FILE",
    "Alarms",
    "Balance",
    "Cluster",
    "Config",
    "Control",
    "Daemon",
    "Epoch",
    "Loaded",
    "Log",
    "Metrics",
    "Plugins",
    "Policy",
    "Record",
    "Session",
    "Stream",
    "Transfer",
    "adjusted",
    "assigned",
    "control_endpoint",
    "found",
    "load",
    "shown",
    "stream_endpoints",
]

SYSTEM_FILE = Path("/etc/eplbd/eplbd.toml")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration and the origin of each value that is not a default."""

    config: Config
    origins: Mapping[str, str]

    def where(self, path: str) -> str:
        """Where `section.key` got its value: `file:line`, a variable, a flag, or `default`."""
        return self.origins.get(path, "default")

    def rows(self) -> list[tuple[str, object, str]]:
        """Every key with its effective value and origin, in the order of the schema."""
        tables = msgspec.structs.asdict(self.config)
        found: list[tuple[str, object, str]] = []
        for section, table in tables.items():
            for key, value in msgspec.structs.asdict(table).items():
                depth = TABLES.get((section, key), 0)
                found += self._rows_below(f"{section}.{key}", value, depth)
        return found

    def _rows_below(self, path: str, value: object, depth: int) -> list[tuple[str, object, str]]:
        if not depth or not isinstance(value, dict) or not value:
            return [(path, value, self.where(path))]
        rows = (self._rows_below(f"{path}.{name}", v, depth - 1) for name, v in value.items())
        return [*itertools.chain.from_iterable(rows)]


def load(
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Loaded:
    """The configuration in force: flag over environment over file over default.

    Args:
        file: a TOML file, or None for none.
        env: the environment; only names that begin with `EPLBD_` are looked at.
        flags: `section.key` (below `policy.options` and `policy.shadow_options` also an option) to
            text, as given with `-o`.

    Raises:
        ConfigError: every wrong key and value, its place, what was expected, a near match.
    """
    given = itertools.chain(
        from_file(file, _schema()) if file else (),
        from_env(env or {}, _schema()),
        from_flags(flags or {}),
    )
    values: dict[tuple[str, ...], object] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for item in given:
        try:
            values[item.path] = _convert(item)
        except ConfigError as error:
            problems.append(str(error))
        else:
            origins[".".join(item.path)] = item.origin
    if problems:
        raise ConfigError("\n".join(problems))
    loaded = Loaded(_assemble(values), origins)
    problems = [*_contradictions(loaded)]
    if problems:
        raise ConfigError("\n".join(problems))
    return loaded


def adjusted(loaded: Loaded, values: Mapping[str, object], origin: str) -> Loaded:
    """The configuration with other values of some `section.key`, which came from `origin`.

    Raises:
        ConfigError: as `load` does.
    """
    tables = msgspec.to_builtins(loaded.config)
    for name, value in values.items():
        section, key = name.split(".")
        tables[section][key] = _convert(Given((section, key), value, origin))
    origins = {**loaded.origins, **dict.fromkeys(values, origin)}
    changed = Loaded(msgspec.convert(tables, Config), origins)
    problems = [*_contradictions(changed)]
    if problems:
        raise ConfigError("\n".join(problems))
    return changed


def found(file: Path | None) -> Path | None:
    """The file to load where the operator named `file` or none: the system's, where it exists."""
    return file if file is not None or not SYSTEM_FILE.exists() else SYSTEM_FILE


def assigned(words: Iterable[str]) -> dict[str, str]:
    """`section.key=value` words as `load` takes flags. Raises ConfigError for anything else."""
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not equals:
            raise ConfigError(f"-o {name}: expected section.key=value")
    return {name.strip(): value for name, _, value in pairs}


def shown(value: object) -> str:
    """A value as it is written in the file."""
    return msgspec.json.encode(value).decode()


# -- schema --------------------------------------------------------------------------------------


def _schema() -> dict[str, dict[str, object]]:
    """Section to key to annotated type, read off the structs."""
    return {
        section.name: {key.name: key.type for key in msgspec.structs.fields(section.type)}
        for section in msgspec.structs.fields(Config)
    }


def _convert(given: Given) -> object:
    schema = _schema()
    section, *rest = given.path
    if section not in schema:
        raise given.refusal(f"unknown section [{section}]{near(section, schema)}")
    if not rest:
        raise given.refusal(f"[{section}] is a table of keys, not a value")
    keys, key = schema[section], rest[0]
    if key not in keys:
        hint = near(key, keys) or f"; known: {', '.join(keys)}"
        raise given.refusal(f"unknown key `{key}` in [{section}]{hint}")
    depth = TABLES.get((section, key), 0)
    if len(rest) - 1 > depth:
        raise given.refusal(f"`{section}.{key}` is one value, it has no keys of its own")
    if rest[1:]:
        value = as_toml(given.value) if isinstance(given.value, str) and given.text else given.value
        if len(rest) - 1 < depth and not isinstance(value, dict):
            raise given.refusal(f"`{'.'.join(given.path)}` is a table of options, not a value")
        return value
    try:
        return _typed(given, keys[key])
    except msgspec.ValidationError as error:
        raise given.refusal(
            f"{section}.{key}: {_expected(keys[key], error)}, got {given.value!r}"
        ) from None


def _typed(given: Given, kind: object) -> object:
    value = given.value
    if given.path == ("policy", "name") and type(value) is int:
        value = str(value)  # vllm-ascend names its policies by number
    if given.path == ("policy", "shadow") and isinstance(value, list):
        value = [str(name) if type(name) is int else name for name in value]
    if given.text and isinstance(value, str) and get_origin(kind) is tuple:
        value = as_list(value)
    typed: object = msgspec.convert(value, kind, strict=not given.text)
    return typed


def _expected(kind: object, error: msgspec.ValidationError) -> str:
    if get_origin(kind) is Literal:
        return f"expected one of {', '.join(get_args(kind))}"
    message = str(error).partition(", got")[0]
    return message[0].lower() + message[1:]


def _assemble(values: Mapping[tuple[str, ...], object]) -> Config:
    tables: dict[str, Any] = {}
    for path, value in values.items():
        table = tables
        for word in path[:-1]:
            table = table.setdefault(word, {})
        table[path[-1]] = value
    return msgspec.convert(tables, Config)


def _contradictions(loaded: Loaded) -> Iterator[str]:
    """What is wrong about values that are each in bounds."""
    epoch, balance, session = loaded.config.epoch, loaded.config.balance, loaded.config.session
    yield from _endpoints(loaded)
    yield from _cluster(loaded)
    yield from _modes(loaded)
    yield from _speeds(loaded)

    def clash(one: str, relation: str, other: str, reason: str) -> str:
        """The sentence about two keys, at the place of the one that somebody wrote."""
        values = {path: value for path, value, _ in loaded.rows()}
        written = [path for path in (one, other) if path in loaded.origins] or [one]
        return (
            f"{loaded.where(written[0])}: {one} = {values[one]} ({loaded.where(one)}) must "
            f"{relation} {other} = {values[other]} ({loaded.where(other)}): {reason}"
        )

    if epoch.guard_forwards >= epoch.margin_forwards:
        reason = "a rank cannot ask the register before it is armed"
        yield clash("epoch.guard_forwards", "be less than", "epoch.margin_forwards", reason)
    if balance.min_steps > balance.window_steps:
        reason = "the window would never hold enough steps to plan"
        yield clash("balance.min_steps", "not exceed", "balance.window_steps", reason)
    if session.silence_s < 2 * session.heartbeat_s:
        reason = "one late heartbeat would lose the worker"
        yield clash("session.silence_s", "be at least twice", "session.heartbeat_s", reason)
    for step in ("prepare", "stage", "arm", "decide", "settle"):
        if epoch.resend_s >= getattr(epoch, f"{step}_timeout_s"):
            reason = "a lost message would never be sent again"
            yield clash(f"epoch.{step}_timeout_s", "exceed", "epoch.resend_s", reason)


def _endpoints(loaded: Loaded) -> Iterator[str]:
    """What cannot be the address of a unix socket."""
    config = loaded.config
    daemon, stream, control = config.daemon, config.stream, config.control
    given = [("daemon.socket", daemon.socket, daemon.socket)]
    if control.socket:
        given.append(("control.socket", control.socket, control.socket))
    if stream.socket:
        given.append(("stream.socket", stream.socket, stream_endpoints(loaded.config)[1]))
    for key, socket, longest in given:
        place = f"{loaded.where(key)}: {key} = {socket!r}"
        if socket.startswith("tcp://"):
            hint = "use ipc:// and a path; daemons of other nodes are reached through [cluster]"
            yield f"{place}: tcp without encryption does not exist here; {hint}"
        elif not socket.startswith("ipc:///"):
            yield f"{place}: expected ipc:// followed by an absolute path"
        elif len(longest.removeprefix("ipc://").encode()) > 107:
            yield f"{place}: a path longer than 107 bytes does not fit a unix socket's address"


def _cluster(loaded: Loaded) -> Iterator[str]:
    """What cannot be the address of a node's daemon, and what says half of one."""
    cluster = loaded.config.cluster
    for key in ("listen", "advertise", "leader"):
        endpoint = getattr(cluster, key)
        place = f"{loaded.where(f'cluster.{key}')}: cluster.{key} = {endpoint!r}"
        if not endpoint:
            continue
        if not tcp_host(endpoint):
            yield f"{place}: expected {TCP_FORM}"
        elif key != "listen" and is_wildcard(endpoint):
            yield f"{place}: nobody can connect to that; name the address that other nodes reach"
        if not cluster.listen:
            hint = 'set cluster.listen = "tcp://ADDRESS:PORT"'
            yield f"{place}: without cluster.listen this node is alone; {hint}, or drop this"
    if is_wildcard(cluster.listen) and not cluster.advertise:
        yield (
            f"{loaded.where('cluster.listen')}: cluster.listen = {cluster.listen!r} is every "
            "address of this machine, which nobody can connect to: set cluster.advertise to the "
            "one that other nodes reach"
        )
    for one, other in (("leader", "leader_key"), ("leader_key", "leader")):
        if getattr(cluster, one) and not getattr(cluster, other):
            place = loaded.where(f"cluster.{one}")
            yield f"{place}: cluster.{one} says who leads only together with cluster.{other}"
    if cluster.leader_key and not is_key(cluster.leader_key):
        place = f"{loaded.where('cluster.leader_key')}: cluster.leader_key"
        yield f"{place}: expected a public key, 40 characters as `eplbd keygen` prints them"


def _speeds(loaded: Loaded) -> Iterator[str]:
    """What does not say which rank is how fast."""
    for entry in loaded.config.balance.rank_speed:
        if not re.fullmatch(r"(.+:)?\d+=(0\.\d*[1-9]\d*|[1-9]\d{0,3}(\.\d+)?)", entry):
            place = f"{loaded.where('balance.rank_speed')}: balance.rank_speed names {entry!r}"
            yield f"{place}: expected RANK=SPEED or GROUP:RANK=SPEED, the speed a number above 0"


def _modes(loaded: Loaded) -> Iterator[str]:
    """What mode, map and shadows leave no sense in."""
    balance, policy = loaded.config.balance, loaded.config.policy
    if balance.mode == "static" and not balance.map:
        yield (
            f"{loaded.where('balance.mode')}: balance.mode = static needs balance.map, the file of "
            "the placement to go to"
        )
    if balance.map and balance.mode != "static":
        yield (
            f"{loaded.where('balance.map')}: balance.map is for balance.mode = static, the mode is "
            f"{balance.mode} ({loaded.where('balance.mode')}): two authors of one placement"
        )
    twice = [name for name in dict.fromkeys(policy.shadow) if policy.shadow.count(name) > 1]
    if twice:
        yield f"{loaded.where('policy.shadow')}: policy.shadow names `{twice[0]}` twice"
    for name in policy.shadow_options:
        if name not in policy.shadow:
            path = f"policy.shadow_options.{name}"
            place = next((origin for key, origin in loaded.origins.items() if path in key), path)
            hint = near(name, policy.shadow) or "; name it in policy.shadow"
            yield f"{place}: `{name}` in [{path}] is no shadow{hint}"
