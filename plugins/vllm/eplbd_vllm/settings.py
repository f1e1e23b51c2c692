"""What the operator decides about a worker, from the environment and the daemon's own file.

Owns the names of the variables and where the file is. The keys, their bounds and their precedence
are `eplbd.config`'s: one file serves the daemon and the engine beside it. It must not know vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eplbd.config import SYSTEM_FILE, load
from eplbd.core.fixed import STATIC
from eplbd.errors import ConfigError

DISABLE = "EPLBD_DISABLE"
"""Set to anything but nothing or 0: the plugin does nothing at all."""

ROUTES = ("auto", "device", "host")
"""How weights leave a rank; `auto` is directly on a CPU, through pinned host memory elsewhere:
transfers of the device's own library beside a forward's cooperative kernels are known to hang
(vLLM issue 44978)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """socket: the daemon's endpoint. group: name of the EP group, "" to take the served model's.

    experts_per_rank: staging buffers, at least what the daemon puts into one epoch. opening: the
    file of the placement to begin with, in mode static.
    """

    socket: str
    group: str
    route: str
    experts_per_rank: int
    opening: Path | None = None


def disabled(env: Mapping[str, str]) -> bool:
    """Whether the operator wants nothing of this."""
    return env.get(DISABLE, "").strip() not in ("", "0")


def from_environment(env: Mapping[str, str]) -> Settings:
    """Read `EPLBD_CONFIG` or the system's file, `EPLBD_SECTION__KEY`, and the worker's variables.

    The latter are EPLBD_SOCKET (over `daemon.socket`), EPLBD_GROUP and EPLBD_ROUTE. Raises
    ConfigError with place and fix for whatever is wrong.
    """
    named = env.get("EPLBD_CONFIG", "")
    file = Path(named) if named else SYSTEM_FILE
    config = load(file if named or file.exists() else None, env).config
    socket = env.get("EPLBD_SOCKET") or config.daemon.socket
    if not socket.startswith("ipc://"):
        raise ConfigError(f"EPLBD_SOCKET={socket}: expected ipc:///path, the socket of a daemon")
    route = env.get("EPLBD_ROUTE", "auto")
    if route not in ROUTES:
        raise ConfigError(f"EPLBD_ROUTE={route}: expected one of {', '.join(ROUTES)}")
    balance = config.balance
    opening = Path(balance.map) if balance.mode == STATIC else None
    group = env.get("EPLBD_GROUP", "")
    return Settings(socket, group, route, config.epoch.experts_per_rank, opening)
