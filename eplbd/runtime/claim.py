"""At most one daemon per socket and per state directory.

Owns the locks. Both are `flock`s, which the kernel drops with the process that holds them: what a
killed daemon leaves behind locks nobody out. Must not know what is locked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from eplbd.errors import ConfigError


@contextlib.contextmanager
def claim(lock: Path, *, purpose: str, key: str) -> Iterator[None]:
    """Hold `lock` while the block runs; the file stays, with the holder's process id in it.

    Removing it would let two daemons hold two files of one name.

    Raises:
        ConfigError: Another process holds it, or it cannot be made; `key` is the setting to change.
    """
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{key}: cannot lock {purpose}: {lock}: {error.strerror}; the directory must exist and "
            "belong to the daemon's user"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"{key}: another eplbd (process {holder}) holds {purpose}; stop it, or give this "
                "one a place of its own"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
