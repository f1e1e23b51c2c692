"""The file of `balance.map`: the placement that mode static goes to.

Owns which formats are read and whose fault a bad file is. Must not know whether any group has its
shape: that is found out when one is there. It blocks, and belongs in a thread.
"""

from __future__ import annotations

from pathlib import Path

from eplbd.config import Loaded
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.traces.placements import load_placement


def load_map(loaded: Loaded) -> Placement | None:
    """The map that the configuration names; None where it names none.

    Raises:
        ConfigError: It cannot be read, with the place of the setting and in the file.
    """
    if not loaded.config.balance.map:
        return None
    try:
        return read_map(Path(loaded.config.balance.map))
    except ConfigError as error:
        raise ConfigError(f"{loaded.where('balance.map')}: balance.map: {error}") from error


def read_map(path: Path) -> Placement:
    """The placement in a file of either format. Raises ConfigError naming the place in it."""
    return _expert_map(path) if path.suffix == ".json" else load_placement(path)


def _expert_map(path: Path) -> Placement:
    """vllm-ascend's JSON."""
    # Late: most daemons never read one.
    from eplbd.offline.formats import ascend  # noqa: PLC0415
    from eplbd.offline.formats.content import Context, Mapped  # noqa: PLC0415

    content = ascend.read(path, Context())
    if not isinstance(content, Mapped):
        raise ConfigError(f"{path}: holds heat, expected a placement")
    return content.placement
