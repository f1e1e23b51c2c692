"""Files on the operator's side: a placement that is loaded, heat that is dumped.

Read and written with the rights of whoever calls, never with the daemon's. Owns which formats there
are. Must not know sockets.
"""

from __future__ import annotations

from pathlib import Path

from eplbd.core.placement import Placement
from eplbd.errors import ConfigError
from eplbd.runtime.fixedmap import read_map
from eplbd.traces.archive import HeatTrace, save_trace
from eplbd.wire import control

SUFFIXES = (".npz", ".json")


def placed(word: str, group: str) -> control.Load | control.Place:
    """What `load WORD` asks for: a file's placement, or one that the daemon keeps.

    A file is what has a slash, or the suffix of a placement file. Raises ConfigError where it
    cannot be read.
    """
    if "/" not in word and not word.endswith(SUFFIXES):
        return control.Load(word, group)
    path = Path(word)
    placement: Placement = read_map(path)
    return control.Place(path.name, placement.experts, placement.slots, group, placement.shares)


def dump(path: Path, dumped: control.Dumped) -> str:
    """Write heat as a trace that the offline commands read; what was written.

    Raises:
        ConfigError: The file cannot be written.
    """
    meta = {
        "rows": "steps",
        "source": "eplbd ctl heat dump",
        "group": dumped.group,
        "phase": dumped.phase,
        "first_forward": dumped.first_forward,
        "last_forward": dumped.last_forward,
        "topk": "measured" if dumped.topk else "unknown, 1 was written",
    }
    heat = dumped.heat.astype("int64")
    trace = HeatTrace(heat, max(1, dumped.topk), ("",) * len(heat), meta)
    try:
        save_trace(path, trace)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    steps, layers, experts = heat.shape
    return f"{path}: {steps} steps of {layers} layers and {experts} experts"
