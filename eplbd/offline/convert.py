"""From one format to another: read strictly, write whole, say what was lost.

Owns the order of that. Must not know any format.
"""

from __future__ import annotations

from pathlib import Path

from eplbd.errors import ConfigError
from eplbd.offline.formats import registry
from eplbd.offline.formats.content import Content, Context
from eplbd.traces.archive import HeatTrace


def convert(
    source: Path,
    target: Path,
    *,
    read_as: str | None = None,
    write_as: str | None = None,
    context: Context | None = None,
) -> str:
    """Convert a file and return what was done in one sentence; notes go to `context`.

    Raises ConfigError naming file and place; the target is not touched then.
    """
    notes = context or Context()
    reading = registry.source(source, read_as)
    writing = registry.target(target, write_as, reading.kind)
    assert reading.read is not None  # noqa: S101  # `source` saw to it
    assert writing.write is not None  # noqa: S101  # `target` saw to it
    content = reading.read(source, notes)
    try:
        writing.write(target, content, notes)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}") from error
    return f"{source} ({reading.name}) -> {target} ({writing.name}): {_summary(content)}"


def _summary(content: Content) -> str:
    if isinstance(content, HeatTrace):
        return f"{content.windows} rows, {content.layers} layers, {content.experts} experts"
    placement = content.placement
    return (
        f"{placement.layers} layers, {placement.experts} experts on {placement.ranks} ranks x "
        f"{placement.slots_per_rank} slots, digest {placement.digest}"
    )
