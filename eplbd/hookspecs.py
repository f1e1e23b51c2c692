"""Every hook of eplbd, and the shape of what they register. The docstrings are the reference.

Owns the contract with plugin authors. Must not know who discovers plugins or what is done with a
policy's answer.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import pluggy

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology

PROJECT = "eplbd"
API = 1
"""Version of the contract on this page. A policy states the one it was written for."""

CAPABILITIES = {
    "shares": "an engine that splits an expert's tokens over its replicas as told",
}
"""What a policy may need that not every engine has: the words of `needs`, each with its meaning.
Words may be added without a new API version: a policy that needs one that is unknown is refused."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Policy(Protocol):
    """What `register` accepts: a class. It is created once per policy process, then asked.

    Options: optional; a `msgspec.Struct` whose fields, each with a default, are the keys of
    `[policy.options]`. A class that declares it is created with an instance of it, any other class
    with no argument.

    needs: optional; names out of `CAPABILITIES` without which the policy makes no sense, such as
    `frozenset({"shares"})`. Where the engine has no such thing the policy is not asked; each
    question counts as a failure of it, so that it is suspended, loudly. A policy that merely
    profits from a capability looks at the budget instead.
    """

    @property
    def name(self) -> str:
        """The word that operators write in `eplbd.toml`: lower case, digits, dashes."""
        ...

    @property
    def eplbd_api(self) -> int:
        """The version of this contract that the policy was written for: 1."""
        ...

    def propose(
        self, heat: Heat, topology: Topology, current: Placement, budget: Budget
    ) -> Placement:
        """Say where the experts should be, for all layers at once.

        All arrays are read-only. The answer has the shape of `current`, every expert in every
        layer, and no expert twice on one rank; `current` itself means that nothing is worth moving.
        It may carry shares where `budget.weighted` says so, and must not elsewhere.
        The same arguments must give the same answer. An answer that is late, malformed or an
        exception counts as a failure and changes nothing; nobody repairs it.
        """
        ...


Register: TypeAlias = Callable[[type[Policy]], None]


@hookspec
def eplbd_register_policies(register: Register) -> None:
    """Offer policies: call `register(MyPolicy)` for each class.

    When: once, at the start of a policy process, after the plugin's module has been imported.
    Import and hook only declare; what is expensive belongs into the policy's `__init__`.
    Where: in the policy process, a child of the daemon with a memory cap. Never in the daemon and
    never in the inference engine. `eplbd policies` calls it as well, in a child of its own.
    How long: import, hook, and a first proposal for a small made-up problem must be done within the
    start time (180 seconds), or the process is killed.
    If it raises: nothing of this plugin is offered, `eplbd policies` shows the error, and other
    plugins go on. If the configured policy is one of its own, eplbd refuses to start.
    """
