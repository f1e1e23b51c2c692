"""A rank that its engine masks: an adapter says so to the agent, the agent to the leader."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from eplbd.core import messages as m
from tests.worker.agents import EAGER, Daemon, serving


def masked(daemon: Daemon) -> list[bool]:
    return [said.masked for said in daemon.heard if isinstance(said, m.Pulse)]


def test_pulses_say_it_while_it_lasts(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/d.sock"
    with serving(endpoint) as group, ExitStack() as stack:
        daemon = Daemon(endpoint, EAGER)
        stack.callback(daemon.die)
        daemon.until(lambda: len(masked(daemon)) > 4, "pulses")
        assert not any(masked(daemon))
        group.ranks[1].agent.masked = True
        daemon.until(lambda: any(masked(daemon)), "a pulse of a masked rank")
        group.ranks[1].agent.masked = False
        daemon.until(lambda: not any(masked(daemon)[-4:]), "pulses of ranks that serve")
