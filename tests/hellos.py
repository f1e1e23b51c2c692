"""What a rank says when it introduces itself, for tests that have none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eplbd.core import messages as m

_PLAIN = m.Hello(
    wire=m.WIRE_VERSION,
    wire_min=m.WIRE_VERSION_MIN,
    group="g",
    incarnation="1",
    rank=0,
    ranks=1,
    node="n",
    layers=2,
    experts=8,
    slots_per_rank=8,
    term=0,
    expert_bytes=1,
    layout_digest="0" * 16,
)


def hello(**said: Any) -> m.Hello:  # noqa: ANN401 - any field of Hello
    """Return the hello of a group of one small rank, but for what is `said`."""
    return replace(_PLAIN, **said)
