"""The simulated store of the EP group: decisions that hold, and where the leader is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eplbd.core.agent_events import LeaderFound, PublishLeader, RegisterAnswered, SeekLeader

if TYPE_CHECKING:
    from eplbd.core.messages import Verdict
    from tests.sim.rank import SimRank


class Store:
    """Lives as long as the group does."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[object, ...], Verdict] = {}
        self.published = LeaderFound("", "")

    def answer(self, me: SimRank) -> None:
        """Let a rank's registrar do one thing: the first writer of a decision decides for all."""
        ask = me.registrar.popleft()
        match ask:
            case PublishLeader(endpoint, key):
                self.published = LeaderFound(endpoint, key)
            case SeekLeader():
                me.step(self.published)
            case _:
                about = ask.term, ask.epoch, ask.gate, ask.attempt
                me.step(RegisterAnswered(*about, self.verdicts.setdefault(about, ask.proposal)))
