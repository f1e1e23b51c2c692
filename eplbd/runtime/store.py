"""What a daemon must not forget: per group the newest term, epoch and placement, and of what model.

Owns the state directory. A record replaces the one before it whole or not at all. Workers hold the
truth about placements; what only this file knows is the term, and where a group should go back to
in its next life, so a record that cannot be read costs a log line and nothing else. Must not know
sockets or the protocol; it blocks, and belongs in a thread.

A record is a magic line, 16 bytes of blake2b over the rest, the length of the header, then the two
frames of `Record` as the wire's codec makes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplbd.core.events import Note, Persist, Restored
from eplbd.core.opening import Likeness
from eplbd.core.placement import Placement
from eplbd.errors import ConfigError, RemoteProtocolError
from eplbd.runtime.claim import claim
from eplbd.runtime.retention import Retention, prune
from eplbd.wholefile import replacing
from eplbd.wire.codec import Codec
from eplbd.wire.limits import MAX_MESSAGE_BYTES

MAGIC = b"eplbd placement 1\n"
DIGEST_BYTES = 16
SUFFIX = ".placement"


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One group, as it stood when its last epoch settled."""

    group: str
    term: int
    epoch: int
    experts: int
    digest: str
    slots: NDArray[np.int32] = field(metadata={"dtype": "int32", "ndim": 3})
    layout_digest: str = ""
    """This and what follows: see `Likeness`. Empty in records of older releases."""
    node_of: tuple[int, ...] = ()
    phase: str = ""


_CODEC = Codec({"record": Record})


class UnreadableRecordError(ValueError):
    """A file that is no record of ours, with what is wrong about it."""


class Store:
    """The state directory. Made by `open_store`; one thread at a time."""

    def __init__(self, directory: Path, retention: Retention) -> None:
        self._directory, self._retention = directory, retention
        self._served: set[Path] = set()
        """Records of groups that settled in this daemon's life."""

    def tidy(self) -> Iterator[Note]:
        """Delete what `retention` does not want kept; a note for each file."""
        yield from prune(self._directory, self._retention, self._served)

    def restore(self) -> Iterator[Restored | Note]:
        """What is known of each group; a note for each file that was put aside."""
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            try:
                record = self._read(path)
                found = _restored(record)
            except (OSError, UnreadableRecordError) as error:
                yield self._put_aside(path, error)
            else:
                yield found

    def write(self, persist: Persist) -> None:
        """Replace a group's record, and return when it is on the disk.

        Raises:
            OSError: It is not; the record before it is still there.
        """
        placement, likeness = persist.placement, persist.likeness
        record = Record(
            group=persist.group,
            term=persist.term,
            epoch=persist.epoch,
            experts=placement.experts,
            digest=placement.digest,
            layout_digest=likeness.layout_digest if likeness else "",
            node_of=likeness.node_of if likeness else (),
            phase=likeness.phase if likeness else "",
            slots=placement.slots,
        )
        path = self._path(persist.group)
        with replacing(path) as file:
            file.write(_pack(record))
        self._served.add(path)
        _sync_directory(self._directory)

    def _read(self, path: Path) -> Record:
        record = read_record(path)
        if path != self._path(record.group):
            raise UnreadableRecordError(f"is of group {record.group!r} and named like another's")
        return record

    def _path(self, group: str) -> Path:
        return self._directory / f"{file_name(group)}{SUFFIX}"

    def _put_aside(self, path: Path, error: Exception) -> Note:
        fields: dict[str, object] = {"file": str(path), "reason": str(error)}
        aside = path.with_name(path.name + ".refused")
        try:
            path.replace(aside)
            fields["kept_as"] = str(aside)
        except OSError as problem:
            fields["kept_as"] = f"in place: {problem}"
        return Note("error", "stored placement refused, taken as absent", fields)


def _restored(record: Record) -> Restored:
    """With its placement where it is known what that is a placement of.

    Whether it can be served is found out by who would go there.
    """
    known = record.group, record.term, record.epoch
    if not record.layout_digest:
        return Restored(*known)
    likeness = Likeness(record.layout_digest, record.node_of, record.phase)
    return Restored(*known, Placement(record.slots, record.experts), likeness)


def file_name(text: str) -> str:
    """A name for a file of what a peer calls `text`: of that as much as is harmless, and unique."""
    harmless = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:64]
    tail = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{harmless}-{tail}"


@contextlib.contextmanager
def open_store(directory: Path, retention: Retention | None = None) -> Iterator[Store]:
    """Hold the state directory while the block runs; made if only it is missing.

    Raises:
        ConfigError: It cannot be used, or another daemon does.
    """
    try:
        directory.mkdir(mode=0o750, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"daemon.state_dir: cannot make {directory}: {error.strerror}; its parent must exist "
            "and the daemon's user must be able to write to it"
        ) from error
    lock, purpose = directory / "eplbd.lock", f"the state directory {directory}"
    with claim(lock, purpose=purpose, key="daemon.state_dir"):
        yield Store(directory, retention or Retention())


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        UnreadableRecordError: It holds none.
        OSError: It cannot be read.
    """
    if path.stat().st_size > MAX_MESSAGE_BYTES:
        raise UnreadableRecordError(f"is larger than {MAX_MESSAGE_BYTES} bytes")
    octets = path.read_bytes()
    if not octets.startswith(MAGIC):
        raise UnreadableRecordError(f"does not begin with {MAGIC!r}")
    digest, rest = octets[len(MAGIC) :][:DIGEST_BYTES], octets[len(MAGIC) + DIGEST_BYTES :]
    if hashlib.blake2b(rest, digest_size=DIGEST_BYTES).digest() != digest:
        raise UnreadableRecordError("is damaged: its checksum does not match")
    header = int.from_bytes(rest[:4], "little") + 4
    try:
        return _CODEC.decode([rest[4:header], rest[header:]])[1]
    except RemoteProtocolError as error:
        raise UnreadableRecordError(f"was written by another release: {error}") from error


def _pack(record: Record) -> bytes:
    header, slots = _CODEC.encode(record, 0)
    rest = b"".join((len(header).to_bytes(4, "little"), header, slots))
    return b"".join((MAGIC, hashlib.blake2b(rest, digest_size=DIGEST_BYTES).digest(), rest))


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
