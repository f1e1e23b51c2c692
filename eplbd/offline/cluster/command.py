"""`eplbd simulate --cluster`: a group of many nodes, and what its control plane costs.

Owns the options, the table and the JSON. Must not know how anything is simulated.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import click

from eplbd.core.settings import AlarmSettings, BalanceSettings, Settings
from eplbd.errors import ConfigError
from eplbd.offline import plots
from eplbd.offline.cluster.daemon import Meter
from eplbd.offline.cluster.figures import Watch, row
from eplbd.offline.cluster.network import Cut, Quality
from eplbd.offline.cluster.nudge import Nudge
from eplbd.offline.cluster.world import Plan, World
from eplbd.offline.guests import Guest, invite
from eplbd.offline.progress import progress
from eplbd.offline.table import aligned, emit_json, figure, size

WARM_UP_S = 2.0
"""Until the group has gathered and heat comes: gathering is not what serving costs."""

LEAST_RANKS = 8
"""Of the groups that `--plot` compares; each has twice as many as the one before."""

WHOLE_RANKS = 1024
"""Larger groups of a plot run for as much less time as they are larger: their ranks are real."""

LEAST_S = 8.0
"""But for so long: a group that takes seconds to gather has a rebalance and its epochs, too."""

EAGER = Settings(
    balance=BalanceSettings(interval_s=5.0, par_trigger=1.0, min_gain=-1e9, horizon_s=1e9),
    alarms=AlarmSettings(losing_cycles=0),
)
"""As `eplbd.toml`, but a rebalance every five seconds, and every valid proposal is carried out:
epochs are what is simulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an operator says on the command line; see there."""

    ranks: int = 1024
    ranks_per_node: int = 8
    layers: int = 58
    slots: int = 9
    experts: int | None = None
    policy: str | None = None
    forwards_per_second: float = 50.0
    seconds: float = 30.0
    latency_ms: float = 0.5
    loss: float = 0.0
    partition: tuple[str, ...] = ()
    skew: float = 1e-3
    seed: int = 0
    busy: bool = False
    interval_s: float = EAGER.balance.interval_s

    def plan(self) -> Plan:
        """Checked. Raises ConfigError."""
        experts = self.experts or min(256, self.ranks * (self.slots - 1))
        if experts > self.ranks * self.slots:
            raise ConfigError(
                f"--experts {experts}: do not fit into {self.ranks} ranks x {self.slots} slots"
            )
        plan = Plan(
            ranks=self.ranks,
            ranks_per_node=self.ranks_per_node,
            layers=self.layers,
            slots=self.slots,
            experts=experts,
            forwards_per_s=self.forwards_per_second,
            quality=Quality(self.latency_ms / 1e3, loss=self.loss, repetition=self.loss),
            skew=self.skew,
            seed=self.seed,
            busy=self.busy,
            settings=replace(EAGER, balance=replace(EAGER.balance, interval_s=self.interval_s)),
        )
        return replace(plan, cuts=tuple(_cut(text, plan.hosts) for text in self.partition))

    def guest(self) -> Guest:
        """The policy. Raises ConfigError."""
        named = self.policy or Nudge.name
        return Guest(Nudge.name, Nudge) if named == Nudge.name else invite([named])[0]


def _cut(text: str, hosts: int) -> Cut:
    """`AT:SECONDS:NODE[,NODE...]`."""
    try:
        at, lasts, nodes = text.split(":")
        cut = Cut(float(at), float(at) + float(lasts), frozenset(map(int, nodes.split(","))))
    except ValueError:
        raise ConfigError(f"--partition {text}: expected AT:SECONDS:NODE[,NODE...]") from None
    if not cut.hosts <= set(range(hosts)):
        raise ConfigError(f"--partition {text}: nodes are 0 to {hosts - 1}")
    return cut


def run(options: Options) -> dict[str, object]:
    """Simulate one group; its figures. Raises ConfigError, BrokenLawError."""
    watch = Watch()
    began = process_time()
    world = World(options.plan(), options.guest(), watch.see)
    # The simulated thousands of agents are no part of the daemon, nor is collecting them.
    gc.collect()
    gc.disable()
    try:
        world.run(WARM_UP_S)
        for daemon in world.daemons:
            daemon.meter = Meter()
        with progress("simulating", round(options.seconds)) as done:
            for _ in range(round(options.seconds)):
                world.run(1.0)
                gc.collect(1)
                done()
        found = row(world, watch, options.seconds, process_time() - began)
        world.rest()
        world.hold_to_laws()
        return found
    finally:
        gc.enable()


def command(options: Options, json: str | None, plot: Path | None) -> None:
    """Run, and print the table, the JSON, the plot."""
    if plot is not None and plot.suffix not in plots.SUFFIXES:
        raise ConfigError(f"{plot}: a plot is written as {' or '.join(plots.SUFFIXES)}")
    growing = [_of_size(options, ranks) for ranks in _sizes(options.ranks)]
    rows = [run(each) for each in (growing if plot is not None else [options])]
    if plot is not None:
        with plots.style():
            made, axes = plots.figure(2, 2)
            plots.draw_growth(axes, rows)
            plots.save(made, plot)
    if json is not None:
        emit_json(json, rows if plot is not None else rows[0])
    if json != "-":
        click.echo(text(rows))


def _sizes(most: int) -> list[int]:
    return [ranks for ranks in (LEAST_RANKS << n for n in range(20)) if ranks <= most]


def _of_size(options: Options, ranks: int) -> Options:
    """The options of one run of several."""
    whole = options.seconds
    less = max(LEAST_S, whole * WHOLE_RANKS / ranks)
    return replace(options, ranks=ranks, seconds=float(round(min(whole, less))))


_COLUMNS = (
    ("nodes", "nodes", 0),
    ("seconds", "seconds", 0),
    ("leader, cores", "leader_core", 3),
    ("longest turn, ms", "leader_longest_turn_ms", 0),
    ("relay, cores", "relay_core_mean", 3),
    ("epochs", "epochs_settled", 0),
    ("armed to settled", "armed_to_settled_forwards_max", 0),
)


def text(rows: list[dict[str, object]]) -> str:
    """What is printed: a line per group."""
    names = [name for name, _, _ in _COLUMNS]
    header = ["ranks", *names, "leader memory", "up, per rank", "down, per rank"]
    body = [
        [
            str(one["ranks"]),
            *(figure(one[key], digits) for _, key, digits in _COLUMNS),
            *(size(float(str(one[key]))) + unit for key, unit in _SIZES),
        ]
        for one in rows
    ]
    return aligned(header, body)


_SIZES = (("leader_bytes", ""), ("up_bytes_per_rank_s", "/s"), ("down_bytes_per_rank_s", "/s"))
