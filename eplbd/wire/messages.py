"""The protocol's table: which tag stands for which message, and who may say it.

Owns the tags. They are the wire's own names: a dataclass of `eplbd.core.messages` may be renamed, a
tag may not. Must not know what a message does.
"""

from __future__ import annotations

from typing import TypeAlias

from eplbd.core import messages as m
from eplbd.wire.codec import Codec

FROM_AGENT: dict[str, type[m.FromAgent]] = {
    "hello": m.Hello,
    "stands": m.Stands,
    "prepared": m.Prepared,
    "nack": m.Nack,
    "staged": m.Staged,
    "armed": m.Armed,
    "late": m.Late,
    "decided": m.Decided,
    "undecided": m.Undecided,
    "committed": m.Committed,
    "dropped": m.Dropped,
    "pulse": m.Pulse,
    "heat": m.HeatReport,
    "bye": m.Bye,
}
FROM_LEADER: dict[str, type[m.FromLeader]] = {
    "greet": m.Greet,
    "door": m.Door,
    "welcome": m.Welcome,
    "refused": m.Refused,
    "beat": m.Beat,
    "prepare": m.Prepare,
    "stage": m.Stage,
    "arm": m.Arm,
    "decide": m.Decide,
    "confirm": m.Confirm,
    "abort": m.Abort,
}

AgentCodec: TypeAlias = Codec[m.FromAgent]
LeaderCodec: TypeAlias = Codec[m.FromLeader]

AGENT: AgentCodec = Codec(FROM_AGENT)
"""What agents say: they encode with it, leaders decode. Any other message from an agent is an error
of the agent, whatever it holds."""

LEADER: LeaderCodec = Codec(FROM_LEADER)
"""What leaders say."""
