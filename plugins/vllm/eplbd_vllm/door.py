"""Whether the daemon's door can be opened, and the sentence that says why not.

ZeroMQ connects in the background and is silent about what stands in its way, so this knocks once
with a plain socket. Owns the sentence. It must not know vLLM, nor the protocol behind the door.
"""

from __future__ import annotations

import getpass
import grp
import os
import pwd
import socket
import stat
from pathlib import Path

_SCHEME = "ipc://"


def knock(endpoint: str) -> str:
    """Return what is wrong with the daemon's socket and what to do; empty if somebody listens.

    endpoint: `ipc:///path`.
    """
    path = Path(endpoint.removeprefix(_SCHEME))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.0)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return ""  # its queue of connections is full: somebody listens
        except (FileNotFoundError, NotADirectoryError):
            return (
                f"there is no daemon at {path}: start `eplbd serve`, or set EPLBD_SOCKET to where "
                "it listens; it is found as soon as it is there"
            )
        except ConnectionRefusedError:
            return f"nothing listens at {path} any more: start `eplbd serve`; it is found then"
        except PermissionError:
            return _forbidden(path)
        except OSError as error:
            return f"{path} cannot be connected to: {error.strerror or error}; set EPLBD_SOCKET"
    return ""


def _forbidden(path: Path) -> str:
    """Who may not open what, as far as that can be seen from here."""
    try:
        found = path.stat()
    except OSError:
        whose = f"a folder above {path} is closed to {_user()}: open it"
    else:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        owner, group = _name(found.st_uid), _group(found.st_gid)
        whose = (
            f"{path} ({mode}, {owner}:{group}) is closed to {_user()}: make it a member of "
            f"{group}, or set daemon.socket_mode"
        )
    return f"{whose}, and restart the engine"


def _user() -> str:
    try:
        return f"user {getpass.getuser()}"
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
