"""What `eplbd demo` is asked for, and the daemon's configuration that suits it.

Owns the options, their consequences for shape and schedule, and the text of the daemon's file. It
must not know torch, processes or how anything is shown.

The demo takes some ten steps a second where a server takes as many forwards in a tenth of one, and
its traffic changes every ten seconds where a server's changes by the hour. Hence the configuration:
everything that the defaults count in forwards or seconds is shorter by that much.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from eplbd.core.messages import Dispatch
from eplbd.demo.shape import Shape
from eplbd.demo.trace import load_routing
from eplbd.errors import ConfigError
from eplbd.traces.archive import HeatTrace

SPARE_SLOTS = 2
"""Redundant slots per rank: with four ranks a quarter of the experts."""

TOPIC_STEPS = 140
"""Forwards of one topic, fifteen seconds on two cores. After a change the window fills, a plan is
made and moved, all in some fifty steps; the rest of the topic has the good of it."""

TRACE_LAYERS = 6
"""Layers of a trace that are replayed, evenly spaced: steps stay as quick as without a trace."""
TRACE_STEPS = 350
"""A run's worth of steps, in which the whole of a trace is visited."""
LEAST_WINDOW_STEPS = 4

EXPERTS_PER_RANK = 16
"""An expert weighs 50 kB here, not 50 MB: what a default epoch moves would take a dozen of them."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator asked for.

    steps: that are judged; None lets `seconds` decide. trace: recorded routing to replay. broken:
    whether one map entry is made wrong on purpose halfway.
    """

    dispatch: Dispatch = Dispatch.ALL_TO_ALL
    ranks: int = 4
    policy: str = "greedy"
    seed: int = 0
    seconds: float = 40.0
    steps: int | None = None
    trace: Path | None = None
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from the options. topic_steps: forwards of one topic, or window of the trace."""

    shape: Shape
    topic_steps: int
    title: str


def plan_of(options: Options) -> Plan:
    """Size the model and the traffic. Raises ConfigError for a trace that cannot be replayed."""
    if options.trace is None:
        experts = Shape().experts
        per_rank = min(experts, -(-experts // options.ranks) + SPARE_SLOTS)
        shape = Shape(ranks=options.ranks, slots_per_rank=per_rank)
        return Plan(shape, TOPIC_STEPS, _title(shape, "topics of real text"))
    whole = load_routing(options.trace)
    trace = whole.thinned(TRACE_LAYERS)
    shape = Shape.for_trace(
        layers=trace.layers, experts=trace.experts, topk=trace.topk, ranks=options.ranks
    )
    topic_steps = max(LEAST_WINDOW_STEPS, TRACE_STEPS // trace.windows)
    return Plan(shape, topic_steps, _title(shape, _replay(options.trace, trace, whole)))


def _title(shape: Shape, traffic: str) -> str:
    return (
        f"{shape.ranks} ranks x {shape.slots_per_rank} slots, {shape.layers} layers of "
        f"{shape.experts} experts, top-{shape.topk}, {traffic}"
    )


def _replay(path: Path, trace: HeatTrace, whole: HeatTrace) -> str:
    part = f", {trace.layers} of {whole.layers} layers" if trace.layers < whole.layers else ""
    return f"{trace.windows} windows of {path.name}{part}"


def daemon_config(folder: Path) -> str:
    """Return `eplbd.toml` of a daemon that lives in `folder`.

    Raises ConfigError where the folder's path leaves no room for a unix socket's name.
    """
    socket = socket_of(folder)
    if len(socket.removeprefix("ipc://")) > 100:
        raise ConfigError(f"demo: {folder} is too long a path for a socket; set TMPDIR to another")
    sections: dict[str, dict[str, object]] = {
        "daemon": {"socket": socket, "state_dir": str(folder / "state")},
        "log": {"level": "info", "format": "json"},
        # A daemon beside this one may have the port.
        "metrics": {"enabled": False},
        "balance": {
            "interval_s": 2.0,
            "window_steps": 32,
            "min_steps": 16,
            "min_gain": 0.02,
            "pause_s": 0.5,
            "horizon_s": 3600.0,
        },
        "epoch": {
            "experts_per_rank": EXPERTS_PER_RANK,
            "margin_forwards": 4,
            "guard_forwards": 1,
        },
        # Ranks that share two cores cannot send without slowing each other's forwards.
        "transfer": {"inflation_ceiling": 2.0},
    }
    lines = [
        text
        for name, keys in sections.items()
        for text in (
            f"[{name}]",
            *(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in keys.items()),
        )
    ]
    return "\n".join(lines) + "\n"


def socket_of(folder: Path) -> str:
    """Endpoint of the daemon that lives in `folder`."""
    return f"ipc://{folder}/workers.sock"
