"""A unix socket of the daemon's: who may bind it, its permissions, what it must not take.

Owns the place in the file system, for every socket that the daemon listens on. libzmq unlinks
whatever has the path and binds, so that a second daemon would silently take the first one's peers.
Must not know what is said on the socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import zmq
import zmq.asyncio

from eplbd.errors import ConfigError
from eplbd.runtime.claim import claim


@contextlib.contextmanager
def claimed(endpoint: str, key: str) -> Iterator[None]:
    """Hold the right to bind `endpoint` while the block runs.

    What is bound must be closed within the block: closing unlinks the path, whose ever it is by
    then.

    Args:
        endpoint: `ipc://` and an absolute path; where peers connect.
        key: The setting that names it, for refusals.

    Raises:
        ConfigError: Another daemon holds it, or something else is in its place.
    """
    path = path_of(endpoint)
    lock = path.with_name(path.name + ".lock")
    with claim(lock, purpose=f"the socket {path}", key=key):
        _refuse_what_is_not_ours(path, key)
        yield


def bind(listener: zmq.asyncio.Socket, endpoint: str, *, mode: int, key: str) -> None:
    """Bind to a claimed endpoint.

    mode: permissions of the socket; connecting takes the right to write. Raises ConfigError, naming
    `key`, where it cannot be bound.
    """
    path = path_of(endpoint)
    # Nobody may slip in between the bind and the chmod.
    before = os.umask(0o177)
    try:
        listener.bind(endpoint)
        path.chmod(mode)
    except (zmq.ZMQError, OSError) as error:
        raise ConfigError(f"{key}: cannot bind {endpoint}: {error}") from error
    finally:
        os.umask(before)


def path_of(endpoint: str) -> Path:
    """The socket's place in the file system."""
    return Path(endpoint.removeprefix("ipc://"))


def _refuse_what_is_not_ours(path: Path, key: str) -> None:
    """Refuse a live socket and a file: libzmq unlinks whatever has the path, then binds."""
    try:
        kind = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(
            f"{key}: {path} exists and is not a socket; remove it, or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A listener takes or queues a connection at once; nobody answers a killed daemon's file.
        probe.settimeout(0.0)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pass
        except OSError:
            return
    raise ConfigError(
        f"{key}: something listens on {path} already; stop it, or choose another path"
    )


def knock(endpoint: str, key: str, patience_s: float) -> None:
    """Try an endpoint that is to be connected to: libzmq tries again for ever, without a word.

    Raises:
        ConfigError: Nobody listens there, or this user may not write to it; `key` names it.
    """
    path = path_of(endpoint)
    here = f"name the socket of the one that is: -o {key}=ipc:///PATH"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(patience_s)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            raise ConfigError(
                f"{key}: there is no {path}: no daemon of this configuration is running; "
                f"start it (`eplbd serve`), or {here}"
            ) from None
        except PermissionError:
            raise ConfigError(
                f"{key}: this user may not write to {path}; as {key}_mode says, its owner may, or "
                "its group; and root"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{key}: nobody listens on {path} ({error.strerror}): the daemon has "
                f"ended; start it (`eplbd serve`), or {here}"
            ) from None
