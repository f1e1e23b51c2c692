"""A line to the daemon that leads nowhere: the agent dials anew, and balancing goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from eplbd.core import messages as m
from eplbd.wire.messages import AGENT
from tests.worker.agents import Daemon, serving

REDIAL_S = 0.5
MARK = m.Prepared(1 << 40, 1)
"""About a term that nobody led: it says who is heard, and nothing else."""
LIE = m.Pulse(1 << 40)
"""That the rank is at a forward which none will ever reach: no epoch may wait for it."""


@pytest.mark.slow
def test_a_rank_whose_name_was_taken_dials_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's socket hands a name over to its newest bearer, and does not hang up on the last.

    What the rank says on its old line is lost from then on, and nothing comes back on it.
    """
    monkeypatch.setattr("eplbd.worker.agent.REDIAL_S", REDIAL_S)
    endpoint = f"ipc://{tmp_path}/d.sock"
    with serving(endpoint) as group, ExitStack() as stack:
        daemon = Daemon(endpoint)
        stack.callback(daemon.die)
        daemon.until(lambda: group.settled(1), "an epoch settled")
        name = daemon.node.balancers["g"].group.sessions[0].peer
        assert isinstance(name, bytes)
        with zmq.Context() as context, context.socket(zmq.DEALER) as thief:
            thief.setsockopt(zmq.LINGER, 0)
            thief.setsockopt(zmq.IDENTITY, name)
            thief.connect(endpoint)
            thief.send_multipart(AGENT.encode(LIE, 1))
            thief.send_multipart(AGENT.encode(MARK, 2))
            daemon.until(lambda: MARK in daemon.heard, "the thief is heard in the rank's name")
            heard = len(daemon.heard)

        def is_back() -> bool:
            """Whether it said who it is: as every line begins."""
            hellos = (said for said in daemon.heard[heard:] if isinstance(said, m.Hello))
            return any(hello.rank == 0 for hello in hellos)

        daemon.until(is_back, "the rank came another way")
        assert daemon.node.balancers["g"].group.sessions[0].peer != name, "under another name"
        epoch = max(rank.agent.machine.epoch for rank in group.ranks)
        daemon.until(lambda: group.settled(epoch + 1), "epochs settle again")
