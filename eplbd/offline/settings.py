"""What an operator says on the command line of the offline tools, checked and made usable.

Owns the defaults. Must not know what is done with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eplbd.core.heat import Budget
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError
from eplbd.offline import layouts
from eplbd.offline.guests import Guest, invite
from eplbd.offline.links import EXPERT_BYTES, Bandwidth
from eplbd.offline.windows import Recorded, Rows, cut, load
from eplbd.plugins import canonical
from eplbd.sources import as_list, as_toml

_DEADLINE_S = 10.0
"""As in eplbd.toml; a policy may adapt to it, but here nobody stops one that is late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options that `simulate` and `diagnose` share.

    trace: file or directory. ranks, slots, nodes: the group; None for what the recording says.
    policy: names between commas. option: `POLICY.KEY=VALUE` each. modules: plugins that are not
    installed. windows: at most so many. phase: all, prefill or decode. initial: linear, spread,
    recorded or a file. max_moves, max_bytes: of one plan; None for any number. expert_bytes: None
    for the recording's, else `EXPERT_BYTES`. node_gbps, network_gbps: gigabytes per second of one
    rank within a node and between nodes.
    """

    trace: Path
    ranks: int | None = None
    slots: int | None = None
    nodes: int | None = None
    policy: str = "incremental"
    option: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    windows: int = 12
    phase: str = "all"
    initial: str = "linear"
    max_moves: int | None = None
    max_bytes: int | None = None
    expert_bytes: int | None = None
    node_gbps: float = 100.0
    network_gbps: float = 20.0
    weighted: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """The same, read and checked."""

    recorded: Recorded
    topology: Topology
    initial: Placement
    windows: list[Rows]
    guests: list[Guest]
    budget: Budget
    bandwidth: Bandwidth

    @property
    def rows_per_window(self) -> int:
        """Rows of the trace that a window holds."""
        return len(self.windows[0])


def prepare(options: Options) -> Task:
    """Read the trace and find the policies. Raises ConfigError, PolicyError."""
    recorded = load(options.trace).only(options.phase)
    topology = _topology(options, recorded)
    layers, experts = recorded.layers, recorded.experts
    per_expert = options.expert_bytes or recorded.expert_bytes or EXPERT_BYTES
    names = as_list(options.policy)
    if not names:
        raise ConfigError("--policy: names no policy; see `eplbd policies`")
    return Task(
        recorded=recorded,
        topology=topology,
        initial=layouts.initial(options.initial, layers, experts, topology, recorded.initial),
        windows=cut(recorded.rows, options.windows),
        guests=invite(names, _policy_options(options.option), modules=options.modules),
        budget=Budget(
            options.max_moves, options.max_bytes, _DEADLINE_S, per_expert, options.weighted
        ),
        bandwidth=Bandwidth(node=options.node_gbps * 1e9, network=options.network_gbps * 1e9),
    )


def _topology(options: Options, recorded: Recorded) -> Topology:
    meta = recorded.meta
    if options.ranks is None and meta is not None and options.nodes is None:
        slots = options.slots or meta.slots_per_rank
        if meta.ranks * slots < recorded.experts:
            layouts.group(meta.ranks, slots, 1, recorded.experts)
        return Topology(meta.ranks, slots, meta.node_of)
    if options.ranks is None:
        raise ConfigError(f"trace {options.trace}: does not tell the number of ranks; give --ranks")
    slots = options.slots or -(-recorded.experts // options.ranks) + 1
    return layouts.group(options.ranks, slots, options.nodes or 1, recorded.experts)


def _policy_options(assignments: tuple[str, ...]) -> dict[str, dict[str, object]]:
    """`POLICY.KEY=VALUE` as options by policy. Raises ConfigError."""
    given: dict[str, dict[str, object]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        policy, dot, key = path.partition(".")
        if not (equals and dot and policy and key):
            raise ConfigError(f"--option {assignment}: expected POLICY.KEY=VALUE")
        given.setdefault(canonical(policy), {})[key] = as_toml(text)
    return given
