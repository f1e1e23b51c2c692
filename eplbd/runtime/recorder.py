"""Recording to disk, off the loop: a thread with a bounded queue, and no influence on anything.

    DIR/GROUP/LIFE/             the steps of one life of a group, as `eplbd.traces` writes them
    DIR/GROUP/in-force.npz      the placement in force, with its epoch; .json: as an expert map
    DIR/GROUP/proposed.npz      what the policy proposed last, likewise

Owns that layout. What does not fit the queue is dropped and counted, what the disk refuses is
counted and said once. Must not know what is worth recording, nor which recording goes for want of
room (that is `room`).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from eplbd.config import Record
from eplbd.core.assembly import Step
from eplbd.core.events import Note, OpenRecord, RecordPlacement, RecordSteps, Status
from eplbd.errors import ConfigError
from eplbd.runtime.room import trim_groups, trim_lives
from eplbd.runtime.store import file_name
from eplbd.traces.placements import save_placement
from eplbd.traces.recording import TraceMeta
from eplbd.traces.writer import TraceWriter

Recorded: TypeAlias = OpenRecord | RecordSteps | RecordPlacement

QUEUE_BYTES = 64 << 20
"""Of heat, a thousand steps of 58 layers x 256 experts; a disk that is slower has to lose some."""

CHUNK_STEPS = 256
CLOSE_S = 5.0
"""Patience with the last chunk when the daemon stops."""


@dataclass(frozen=True, slots=True)
class RecorderStatistics:
    """Counts since the start.

    steps: taken down; those of the last chunk are not on the disk yet. dropped_steps: there was no
    room in the queue. failures: writes that the disk refused, each of at most `CHUNK_STEPS` steps
    or a placement.
    """

    steps: int
    dropped_steps: int
    failures: int


@dataclass(slots=True)
class _Group:
    """One group's folder, and the writer of its present life; None where that cannot be had."""

    folder: Path
    life: Path
    writer: TraceWriter | None


class Recorder:
    """Takes what is to be recorded and never waits. Made by `open_recorder`."""

    def __init__(
        self, settings: Record, say: Callable[[Note], None], *, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        self._directory, self._max_bytes = Path(settings.dir), settings.max_bytes
        self._total_max_bytes = settings.total_max_bytes
        self._say = say
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        """Of the thread, for whoever calls `tell`."""
        self._queue: queue.SimpleQueue[Recorded | None] = queue.SimpleQueue()
        self._room = queue_bytes
        self._lock = threading.Lock()
        """Of `_room`."""
        self._groups: dict[str, _Group] = {}
        self._newest: dict[tuple[str, Status], RecordPlacement] = {}
        """Placements whose files are out of date."""
        self._steps = self._dropped = self._failures = 0
        self._said: set[str] = set()

    def take(self, effect: Recorded) -> None:
        """Record it, sooner or later, or drop it and count."""
        size = _size(effect)
        with self._lock:
            fits = size <= self._room
            if fits:
                self._room -= size
        if fits:
            self._queue.put(effect)
        elif isinstance(effect, RecordSteps):
            self._dropped += len(effect.steps)

    def tell(self) -> None:
        """Say what the thread found worth a line since the last time."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._say(self._notes.get_nowait())

    def statistics(self) -> RecorderStatistics:
        """Counts so far."""
        return RecorderStatistics(self._steps, self._dropped, self._failures)

    def run(self) -> None:
        """Write until `stop`; the thread's whole life."""
        while (effect := self._queue.get()) is not None:
            self._perform(effect)
            with self._lock:
                self._room += _size(effect)
            if self._queue.empty():
                self._write_placements()
        self._write_placements()
        for name, group in self._groups.items():
            if group.writer is not None:
                with self._counting(name):
                    group.writer.close()

    def stop(self) -> None:
        """Let `run` return once everything is written."""
        self._queue.put(None)

    # --- on the thread --------------------------------------------------------------------------

    def _perform(self, effect: Recorded) -> None:
        match effect:
            case OpenRecord(group=name):
                with self._counting(name):
                    self._open(effect)
            case RecordSteps(name, steps):
                writer = self._groups[name].writer if name in self._groups else None
                for step in steps if writer is not None else ():
                    with self._counting(name):
                        self._add(writer, step)
            case RecordPlacement(group=name, status=status):
                group = self._groups.get(name)
                if group is not None and group.writer and status is not Status.PROPOSED:
                    group.writer.placed(effect.epoch, effect.placement)
                if status is not Status.PLANNED:
                    self._newest[name, status] = effect

    def _open(self, wanted: OpenRecord) -> None:
        folder = self._directory / file_name(wanted.group)
        life = folder / file_name(wanted.incarnation)
        old = self._groups.get(wanted.group)
        if old is not None and old.life == life and old.writer is not None:
            return
        self._groups[wanted.group] = opened = _Group(folder, life, None)
        if old is not None and old.writer is not None:
            old.writer.close()
        self._directory.mkdir(mode=0o750, exist_ok=True)
        folder.mkdir(mode=0o750, exist_ok=True)
        self._forget_others()
        room = self._max_bytes - trim_lives(folder, life, self._max_bytes // 2)
        meta = TraceMeta(
            layers=wanted.layers,
            experts=wanted.experts,
            ranks=wanted.topology.ranks,
            slots_per_rank=wanted.topology.slots_per_rank,
            node_of=wanted.topology.node_of,
            expert_bytes=wanted.expert_bytes,
            counts="sent" if wanted.counts == "sent" else "received",
        )
        opened.writer = TraceWriter(life, meta, chunk_steps=CHUNK_STEPS, max_bytes=room)
        self._said.discard(wanted.group)
        self._note("info", "recording", group=wanted.group, dir=str(life))

    def _forget_others(self) -> None:
        """Keep no more of groups that nobody serves than those that are served leave room for."""
        served = {group.folder for group in self._groups.values()}
        most = max(0, self._total_max_bytes - self._max_bytes * len(served))
        for gone in trim_groups(self._directory, served, most):
            reason = "no room in record.total_max_bytes"
            self._note("info", "recording deleted", dir=str(gone), reason=reason)

    def _add(self, writer: TraceWriter | None, step: Step) -> None:
        if writer is None:
            return
        self._steps += 1
        writer.add(
            step.heat,
            forward=step.forward,
            epoch=step.epoch,
            phase=step.phase,
            tokens=step.tokens,
            dummy=step.dummy,
        )

    def _write_placements(self) -> None:
        newest, self._newest = self._newest, {}
        for (name, status), found in newest.items():
            if name in self._groups:
                with self._counting(name):
                    _write_placement(self._groups[name].folder / status, found)

    @contextlib.contextmanager
    def _counting(self, group: str) -> Iterator[None]:
        """Nothing that the disk does ends the recording: count it, and say it once per life."""
        try:
            yield
        except (OSError, ConfigError) as error:
            self._failures += 1
            if group not in self._said:
                self._said.add(group)
                self._note("error", "not recorded", group=group, reason=str(error))

    def _note(self, level: str, event: str, **fields: object) -> None:
        self._notes.put(Note(level, event, fields))


def _size(effect: Recorded) -> int:
    if isinstance(effect, RecordSteps):
        return sum(step.heat.nbytes for step in effect.steps)
    return effect.placement.slots.nbytes if isinstance(effect, RecordPlacement) else 0


def _write_placement(path: Path, found: RecordPlacement) -> None:
    """As our own file and, where no rank holds an expert twice, as an expert map."""
    # Late: it brings the other formats along, which only a daemon that records pays for.
    from eplbd.offline.formats import ascend  # noqa: PLC0415
    from eplbd.offline.formats.content import Context, Mapped  # noqa: PLC0415

    meta = {"group": found.group, "epoch": found.epoch, "status": str(found.status)}
    save_placement(path.with_suffix(".npz"), found.placement, meta)
    context = Context()
    numbers = context.numbers(found.placement.layers)
    with contextlib.suppress(ConfigError):
        ascend.write(path.with_suffix(".json"), Mapped(found.placement, numbers), context)


@contextlib.contextmanager
def open_recorder(settings: Record, say: Callable[[Note], None]) -> Iterator[Recorder]:
    """A recorder while the block runs; at its end, `CLOSE_S` to write what is queued.

    say: called by `Recorder.tell`, and at the end, never by the thread.
    """
    recorder = Recorder(settings, say)
    thread = threading.Thread(target=recorder.run, name="eplbd-record", daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        recorder.stop()
        thread.join(CLOSE_S)
        recorder.tell()
