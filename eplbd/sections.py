"""The schema of `eplbd.toml`: its sections and keys, their bounds and their defaults.

Owns the names. `eplbd.config` reads values into it and says what cannot be meant together. Knows
nothing of what a value does.
"""

from typing import Annotated, Literal

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Mode = Annotated[str, msgspec.Meta(pattern="^0[0-7]{3}$")]


class Daemon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The process: where workers reach it and where it keeps what it must not forget."""

    socket: str = "ipc:///run/eplbd/workers.sock"
    socket_mode: Mode = "0660"
    state_dir: Annotated[str, msgspec.Meta(min_length=1)] = "/var/lib/eplbd"
    state_max_bytes: Annotated[int, msgspec.Meta(ge=2**20, le=2**50)] = 64 * 2**20
    state_keep_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 90


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes to standard output; `auto` is JSON for the journal, readable on a terminal."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Stream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `eplbd top` and other observers read; an empty `socket` is one beside the workers'."""

    enabled: bool = True
    socket: str = ""
    socket_mode: Mode = "0660"
    interval_s: Seconds = 1.0
    keep_events: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 512


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `eplbd ctl` speaks to; an empty `socket` is one beside the workers'."""

    socket: str = ""
    socket_mode: Mode = "0600"


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where Prometheus scrapes; there is neither encryption nor a password on that door."""

    enabled: bool = True
    address: Name = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 9476


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which policy proposes placements, and the limits it lives under."""

    name: Name = "incremental"
    shadow: tuple[Name, ...] = ()
    deadline_s: Seconds = 10.0
    memory_bytes: Annotated[int, msgspec.Meta(ge=256 * 2**20, le=2**40)] = 4 * 2**30
    failures_until_suspended: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    options: dict[str, object] = msgspec.field(default_factory=dict)
    shadow_options: dict[str, dict[str, object]] = msgspec.field(default_factory=dict)


class Plugins(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which plugins the policy child may import."""

    enabled: tuple[str, ...] = ("*",)
    modules: tuple[str, ...] = ()


class Balance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a rebalance is worth thinking about, and what it must bring."""

    mode: Literal["dynamic", "hold", "record", "static"] = "dynamic"
    map: str = ""
    interval_s: Seconds = 10.0
    window_steps: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 512
    min_steps: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 64
    par_trigger: Annotated[float, msgspec.Meta(ge=1.0, le=1000.0)] = 1.05
    horizon_s: Seconds = 600.0
    min_gain: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.01
    phase: Literal["all", "prefill", "decode"] = "all"
    max_moves: Natural = 0
    pause_s: Seconds = 1.0
    opening: Literal["stored", "spread", "none"] = "stored"
    rank_speed: tuple[Name, ...] = ()
    measure_speed: bool = False
    share_heat: tuple[Name, ...] = ()
    rollout: Literal["together", "one-at-a-time"] = "together"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Heat and placements on disk, for what is done offline."""

    enabled: bool = False
    dir: Name = "/var/lib/eplbd/traces"
    max_bytes: Annotated[int, msgspec.Meta(ge=2**20, le=2**50)] = 2**30
    total_max_bytes: Annotated[int, msgspec.Meta(ge=2**20, le=2**50)] = 2**32


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The transaction: its size, its margins in forwards, and the patience of each of its steps."""

    experts_per_rank: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 2
    margin_forwards: Annotated[int, msgspec.Meta(ge=2, le=65_536)] = 16
    guard_forwards: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 4
    arm_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    prepare_timeout_s: Seconds = 5.0
    stage_timeout_s: Seconds = 30.0
    arm_timeout_s: Seconds = 5.0
    decide_timeout_s: Seconds = 2.0
    settle_timeout_s: Seconds = 10.0
    resend_s: Seconds = 0.25


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the engine's time a transfer may take, and what links carry; 0 is measured."""

    inflation_ceiling: Annotated[float, msgspec.Meta(gt=1.0, le=100.0)] = 1.05
    node_bytes_per_s: Annotated[float, msgspec.Meta(ge=0.0, le=1e15)] = 0.0
    network_bytes_per_s: Annotated[float, msgspec.Meta(ge=0.0, le=1e15)] = 0.0


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The daemons of other nodes: where they reach this one and whom it trusts."""

    listen: str = ""
    advertise: str = ""
    leader: str = ""
    leader_key: str = ""
    key_file: Name = "/etc/eplbd/keys/node.key_secret"
    trust_dir: Name = "/etc/eplbd/trust"
    interval_s: Annotated[float, msgspec.Meta(ge=0.01, le=60.0)] = 0.25


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One worker's connection: signs of life and the largest message either side accepts."""

    heartbeat_s: Seconds = 0.5
    silence_s: Seconds = 3.0
    max_message_bytes: Annotated[int, msgspec.Meta(ge=2**20, le=2**32)] = 64 * 2**20
    max_books_bytes: Annotated[int, msgspec.Meta(ge=2**20)] = 4 * 2**30


class Alarms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is said although nothing has failed, and when a policy is judged by what it brings."""

    no_worker_s: Seconds = 60.0
    heat_stale_s: Seconds = 60.0
    epoch_overdue_s: Seconds = 120.0
    losing_cycles: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 3
    kept_share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.5


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `eplbd.toml`. `Config()` is the documented default."""

    daemon: Daemon = Daemon()
    log: Log = Log()
    metrics: Metrics = Metrics()
    stream: Stream = Stream()
    control: Control = Control()
    cluster: Cluster = Cluster()
    policy: Policy = Policy()
    plugins: Plugins = Plugins()
    balance: Balance = Balance()
    record: Record = Record()
    epoch: Epoch = Epoch()
    transfer: Transfer = Transfer()
    session: Session = Session()
    alarms: Alarms = Alarms()


def beside(daemon: Daemon, socket: str, name: str) -> str:
    """A socket's endpoint: `socket` as configured, else `name` in the folder of the workers'."""
    return socket or f"{daemon.socket.rpartition('/')[0]}/{name}"


def stream_endpoints(config: Config) -> tuple[str, str]:
    """Where events are published, and where what was missed is asked for."""
    events = beside(config.daemon, config.stream.socket, "events.sock")
    return events, f"{events}.replay"


def control_endpoint(config: Config) -> str:
    """Where commands are taken."""
    return beside(config.daemon, config.control.socket, "control.sock")
