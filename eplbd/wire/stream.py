"""The event stream: what whoever watches is told, as messages and as frames.

Owns what is public of a daemon's inner life: the names and the units that `eplbd top` and programs
of others rely on. A field may be added, with a default; none changes its meaning. Lines are those
of the log, field by field. Must not know sockets, who listens, or when a snapshot is due.

    published      topic  seq  payload        topic: the type of the payload
    asked for      ""     seq                 everything from this number on
    answered       ""     seq  payload        one per event, then a snapshot, then
                   ""     END  ""

A number is 8 bytes, big-endian; the payload is a msgpack map. Frames as vLLM publishes the events
of its KV cache, so that a reader of one is a reader of the other.
"""

import struct
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd.core.events import CycleEnded, Effect, EpochEnded, Note, ShadowScored
from eplbd.core.views import (
    BudgetOverview,
    EpochOverview,
    GroupOverview,
    NodeOverview,
    RankOverview,
    RelayOverview,
    ShadowOverview,
)
from eplbd.errors import LocalProtocolError, RemoteProtocolError

STREAM_VERSION = 1
END = b"\xff" * 8
"""In the place of a number: the answer is complete."""

MAX_EVENT_BYTES = 1 << 24
"""Of one payload. A snapshot of 58 layers on 1,024 ranks takes a quarter of a megabyte."""

_NUMBER = struct.Struct(">Q")
_PERCENT = 100


class Told(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every payload has."""

    at_s: float
    """Seconds since 1970, by the clock of the daemon's machine."""


class Epoch(Told, frozen=True, kw_only=True, tag="epoch"):
    """An epoch ended."""

    line: EpochEnded


class Cycle(Told, frozen=True, kw_only=True, tag="cycle"):
    """A rebalance ended: what was predicted and what came of it."""

    line: CycleEnded


class Shadow(Told, frozen=True, kw_only=True, tag="shadow"):
    """A shadow was scored on the window after the one it was asked about."""

    line: ShadowScored


class Noted(Told, frozen=True, kw_only=True, tag="note"):
    """Anything else that is worth a line of the log."""

    level: str
    """info, warning or error."""
    event: str
    fields: dict[str, object] = {}


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One EP group; most of it as `eplbd.core.views.GroupOverview` has it, by the same names."""

    name: str
    incarnation: str
    term: int
    epoch: int
    forward: int
    mode: str
    phase: str
    frozen: str
    paused: str
    nodes: int
    layers: int
    experts: int
    slots_per_rank: int
    expert_bytes: int
    digest: str
    stage: str
    window: int
    last_commit_age_s: float | None
    ranks: tuple[RankOverview, ...]
    epoch_now: EpochOverview | None
    budget: BudgetOverview
    shadows: tuple[ShadowOverview, ...]
    observed_par: list[float]
    """Per layer, mean over the window; empty while there is no heat."""
    planned_par: list[float]
    """Per layer, as the newest accepted plan promised; empty if there was none."""
    rank_load: list[list[int]]
    """Per layer and rank, percent of the layer's mean; empty while there is no heat."""
    epochs: dict[str, int]
    """How many ended since the daemon started, by outcome."""
    cycles: dict[str, int]
    """The same of rebalances."""


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that holds and that somebody should look at."""

    name: str
    group: str
    """Empty where it concerns the daemon."""
    reason: str
    age_s: float


class Snapshot(Told, frozen=True, kw_only=True, tag="snapshot"):
    """How everything stands."""

    stream: int
    """Version of these payloads."""
    version: str
    """Of eplbd."""
    host: str
    up_s: float
    """Since the daemon started."""
    stopping: bool
    policy: str
    """The one in charge."""
    suspended: bool
    """Whether it failed too often to be asked."""
    results: dict[str, dict[str, int]]
    """What came of questions, by policy and outcome."""
    groups: tuple[Group, ...]
    alarms: tuple[Alarm, ...] = ()
    relays: tuple[RelayOverview, ...] = ()
    """Groups of this node that the daemons of other nodes lead."""


_encode = msgspec.msgpack.Encoder(enc_hook=repr).encode
_decode = msgspec.msgpack.Decoder(Snapshot | Epoch | Cycle | Shadow | Noted).decode
_SAME = frozenset(Group.__struct_fields__) - {
    "observed_par", "planned_par", "rank_load", "epochs", "cycles",
}  # fmt: skip


def told(effect: Effect, at_s: float) -> Told | None:
    """What the stream says of an effect; None for what is nobody else's business."""
    match effect:
        case EpochEnded():
            return Epoch(at_s=at_s, line=effect)
        case CycleEnded():
            return Cycle(at_s=at_s, line=effect)
        case ShadowScored():
            return Shadow(at_s=at_s, line=effect)
        case Note(level, event, fields):
            return Noted(at_s=at_s, level=level, event=event, fields=dict(fields))
        case _:
            return None


def snapshot(seen: NodeOverview, *, at_s: float, up_s: float, version: str, host: str) -> Snapshot:
    """A look at everything, as the stream tells it."""
    results: dict[str, dict[str, int]] = {}
    for (policy, outcome), count in seen.results.items():
        results.setdefault(policy, {})[outcome] = count
    return Snapshot(
        at_s=at_s,
        stream=STREAM_VERSION,
        version=version,
        host=host,
        up_s=up_s,
        stopping=seen.stopping,
        policy=seen.policy,
        suspended=seen.suspended,
        results=results,
        groups=tuple(map(_group, seen.groups)),
        alarms=tuple(
            Alarm(name=held.name, group=held.group, reason=held.reason, age_s=seen.now - held.since)
            for held in seen.alarms
        ),
        relays=seen.relays,
    )


def _group(seen: GroupOverview) -> Group:
    load = seen.rank_load
    return Group(
        **{name: getattr(seen, name) for name in _SAME},
        observed_par=_listed(seen.observed_par),
        planned_par=_listed(seen.planned_par),
        rank_load=[] if load is None else np.rint(load * _PERCENT).astype(np.int64).tolist(),
        epochs=dict(seen.totals.epochs),
        cycles=dict(seen.totals.cycles),
    )


def _listed(array: NDArray[np.float64] | None) -> list[float]:
    found: list[float] = [] if array is None else np.asarray(array).tolist()
    return found


def payload(event: Told) -> bytes:
    """A payload's bytes. Raises LocalProtocolError for what nobody could read, or nobody would."""
    try:
        encoded = _encode(event)
    except (OverflowError, TypeError, ValueError) as error:  # a file's name need not be text
        raise LocalProtocolError(f"{topic(event)!r}: {error}") from error
    if len(encoded) > MAX_EVENT_BYTES:
        raise LocalProtocolError(f"{topic(event)!r}: {len(encoded)} bytes are too many to publish")
    return encoded


def topic(event: Told) -> bytes:
    """The frame by which a subscriber chooses."""
    return str(event.__struct_config__.tag).encode()


def number(seq: int) -> bytes:
    """The frame of an event's number."""
    return _NUMBER.pack(seq)


def published(frames: Sequence[bytes]) -> tuple[int, Told]:
    """Number and event of what was published. Raises RemoteProtocolError for anything else."""
    match frames:
        case [_, seq, body] if len(seq) == _NUMBER.size:
            return int(_NUMBER.unpack(seq)[0]), _event(body)
    raise RemoteProtocolError("event stream: expected the frames topic, number, payload")


def answered(frames: Sequence[bytes]) -> tuple[int, Told] | None:
    """Number and event of one answer, None at the end. Raises RemoteProtocolError."""
    match frames:
        case [b"", seq, b""] if seq == END:
            return None
        case [b"", seq, body] if len(seq) == _NUMBER.size:
            return int(_NUMBER.unpack(seq)[0]), _event(body)
    raise RemoteProtocolError("event stream: expected the frames nothing, number, payload")


def asked(frames: Sequence[bytes]) -> int:
    """The number from which on somebody wants everything. Raises RemoteProtocolError."""
    match frames:
        case [b"", seq] if len(seq) == _NUMBER.size:
            return int(_NUMBER.unpack(seq)[0])
    raise RemoteProtocolError("event stream: expected the frames nothing, number")


def _event(body: bytes) -> Told:
    try:
        event: Told = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(
            f"event stream: {error}; the daemon and this program are of different versions: "
            "upgrade the older one"
        ) from None
    return event
