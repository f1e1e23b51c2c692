"""What a watcher remembers of the stream: the newest snapshot, and how it came to that.

Owns what is forgotten, and when. Must not know how it is drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from eplbd.core.events import CycleEnded, EpochEnded, ShadowScored
from eplbd.wire.stream import Cycle, Epoch, Group, Noted, Shadow, Snapshot, Told

KEPT = 64
"""Lines of a kind: no terminal shows more."""

TRENDS = 24
TREND_S = 10.0
"""Points of a trend, and the time between them; the newest is as new as the snapshot."""

GROUPS = 64


@dataclass(slots=True)
class Story:
    """What became of one group, newest last.

    trend: PAR per layer, of rebalances that were measured and of snapshots. marked_at: when its
    newest point was begun, by the daemon's clock.
    """

    epochs: deque[EpochEnded] = field(default_factory=lambda: deque(maxlen=KEPT))
    cycles: deque[CycleEnded] = field(default_factory=lambda: deque(maxlen=KEPT))
    scores: dict[str, ShadowScored] = field(default_factory=dict)
    trend: deque[list[float]] = field(default_factory=lambda: deque(maxlen=TRENDS))
    marked_at: float = 0.0

    def mark(self, layers: list[float], at_s: float) -> None:
        """Take a point of the trend, if it is one."""
        if not layers:
            return
        if self.trend and len(self.trend[-1]) != len(layers):
            self.trend.clear()  # the group came back as another model
        if self.trend and 0 <= at_s - self.marked_at < TREND_S:
            self.trend[-1] = layers
            return
        self.trend.append(layers)
        self.marked_at = at_s

    def trend_of(self, first: int, last: int) -> list[float]:
        """PAR of the hottest of these layers, both included, over time."""
        return [max(layers[first : last + 1], default=0.0) for layers in self.trend]


class History:
    """Everything that was told and is not forgotten."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.notes: deque[Noted] = deque(maxlen=KEPT)
        self._stories: dict[str, Story] = {}

    def take(self, events: Iterable[Told]) -> None:
        """Remember what was told."""
        for event in events:
            match event:
                case Snapshot():
                    self._seen(event)
                case Epoch(line=line):
                    self.story(line.group).epochs.append(line)
                case Cycle(at_s=at_s, line=line):
                    story = self.story(line.group)
                    story.cycles.append(line)
                    story.mark(list(line.layers), at_s)
                case Shadow(line=line):
                    self.story(line.group).scores[line.policy] = line
                case Noted():
                    self.notes.append(event)

    def story(self, group: str) -> Story:
        """Of a group, begun where there is none yet; of the oldest too many, forgotten."""
        if group not in self._stories:
            self._stories[group] = Story()
            if len(self._stories) > GROUPS:
                del self._stories[next(iter(self._stories))]
        return self._stories[group]

    def group(self, index: int) -> Group | None:
        """The group of this place, counted round; None while there is none."""
        groups = self.snapshot.groups if self.snapshot else ()
        return groups[index % len(groups)] if groups else None

    def _seen(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        for group in snapshot.groups:
            self.story(group.name).mark(group.observed_par, snapshot.at_s)
