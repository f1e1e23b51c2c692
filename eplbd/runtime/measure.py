"""What a metric is that is read when somebody asks: a name, labels, a meaning and a source.

Owns the form. Must not know which metrics there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from eplbd.runtime.readings import Sample, Seen


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric. A name that ends in `_total` is a counter's."""

    name: str
    labels: tuple[str, ...]
    about: str
    read: Callable[[Seen], Iterable[Sample]]

    @property
    def kind(self) -> str:
        """As Prometheus calls it."""
        return "counter" if self.name.endswith("_total") else "gauge"
