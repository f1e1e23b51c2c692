"""The other end of the control socket: one command, one reply.

Owns who is said to call, and how long a reply is waited for. It blocks, and belongs to whoever
gives orders (`eplbd ctl`, a thread of `eplbd top`), not to the daemon. Must not know what a command
does.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping

import zmq

from eplbd.config import Config, control_endpoint
from eplbd.errors import ConfigError, RemoteProtocolError
from eplbd.runtime.endpoint import knock
from eplbd.wire import control as wire
from eplbd.wire.limits import MAX_MESSAGE_BYTES

ANSWER_S = 15.0
"""Milliseconds, unless the daemon's disk or machine is slow."""

PROMOTE_S = 600.0
"""A policy that is started for the first time may compile for minutes."""

KEY = "control.socket"


def whoever(environment: Mapping[str, str]) -> str:
    """The user who calls, with the one behind sudo; stated, not proven."""
    uid = os.getuid()
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    behind = environment.get("SUDO_USER", "")
    return f"{name} (uid {uid})" + (f" for {behind}" if behind and behind != name else "")


def call(
    config: Config, request: wire.Request, *, who: str, why: str, patience_s: float | None = None
) -> wire.Reply:
    """Give a command to the daemon of this configuration and wait for its reply.

    patience_s: by default as long as the command may take.

    Raises:
        ConfigError: The daemon is not there, may not be asked, or does not answer in time.
        RemoteProtocolError: The reply is none that this version understands.
        LocalProtocolError: The command, `who` or `why` cannot be sent.
    """
    endpoint = control_endpoint(config)
    slow = isinstance(request, wire.Promote)
    patience = patience_s or (PROMOTE_S if slow else ANSWER_S)
    frames = wire.ask(wire.Caller(wire.CONTROL_VERSION, who, why), request, number=1)
    knock(endpoint, KEY, patience)
    with zmq.Context(io_threads=1) as context, context.socket(zmq.DEALER) as caller:
        caller.setsockopt(zmq.LINGER, 0)
        caller.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        caller.connect(endpoint)
        caller.send_multipart(frames)
        if not caller.poll(int(patience * 1_000)):
            raise ConfigError(
                f"{KEY}: no answer on {endpoint} within {patience:g} s; what was asked for may be "
                "under way: see the daemon's log"
            )
        number, reply = wire.REPLY.decode(caller.recv_multipart())
    if number not in (0, 1):
        raise RemoteProtocolError(f"the reply is to request {number}, expected 1")
    return reply
