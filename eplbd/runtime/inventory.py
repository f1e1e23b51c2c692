"""The table of `eplbd policies`: who is installed, where from, and what went wrong last.

Owns its columns. Loading plugins is the policy child's work; what a daemon remembers is `faults`'.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from eplbd.plugins import ALIASES
from eplbd.runtime.faults import LastFault, read_faults
from eplbd.runtime.policyhost import list_policies

if TYPE_CHECKING:
    from eplbd.config import Config
    from eplbd.wire.policy import Listed

HEAD = ("policy", "plugin", "distribution", "version", "api", "needs", "last error")


def inventory(config: Config) -> tuple[list[tuple[str, ...]], str]:
    """The table with its head, and why it does not tell what a daemon remembers; else empty.

    Raises:
        ConfigError: `[plugins]` names what is not there.
        PolicyError: A plugin took the listing down.
    """
    listing = anyio.run(list_policies, config.plugins, config.policy.memory_bytes)
    faults, missing = _faults(Path(config.daemon.state_dir))
    return [HEAD, *(_row(listed, faults) for listed in listing.rows)], missing


def _faults(directory: Path) -> tuple[dict[str, LastFault], str]:
    try:
        found = read_faults(directory)
    except OSError as error:
        return {}, f"what the daemon remembers cannot be read: {error}"
    return {ALIASES.get(name, name): fault for name, fault in found.items()}, ""


def _row(listed: Listed, faults: dict[str, LastFault]) -> tuple[str, ...]:
    error = listed.error
    if not error and listed.policy in faults:
        error = str(faults[listed.policy])
    cells = (
        listed.policy,
        listed.plugin,
        listed.distribution,
        listed.version,
        listed.api,
        listed.needs,
        error,
    )
    return tuple(cell or "-" for cell in cells)
