"""How an agent keeps in touch, and who looks for the leader."""

from __future__ import annotations

from eplbd.core import agent_events as e
from eplbd.core import messages as m
from eplbd.core.agent import Agent
from eplbd.core.contact import SEEK_S
from eplbd.core.events import Tick
from eplbd.core.placement import Placement

PLACEMENT = Placement.linear(1, 4, 2, 3)


def said(agent: Agent, *events: e.AgentEvent) -> list[e.AgentEffect]:
    return [effect for event in events for effect in agent.step(event)]


def test_a_lonely_rank_looks_for_the_leader_now_and_then() -> None:
    """Rank 0 does not: its own daemon leads."""
    times = [Tick(at / 10) for at in range(int(SEEK_S * 10) + 1)]
    assert said(Agent(1, PLACEMENT), *times).count(e.SeekLeader()) == 2
    assert e.SeekLeader() not in said(Agent(0, PLACEMENT), *times)


def test_who_has_a_leader_looks_no_more_until_it_is_lost() -> None:
    agent = Agent(1, PLACEMENT)
    said(agent, Tick(0.0), e.Heard(m.Welcome(1, m.WIRE_VERSION, 0.5, 3.0)))
    assert agent.connected
    assert e.SeekLeader() not in said(agent, Tick(2.5))
    assert e.SeekLeader() in said(agent, Tick(3.5)), "silent for longer than agreed"
    assert not agent.connected


def test_what_was_found_is_kept_for_the_next_hello() -> None:
    agent = Agent(1, PLACEMENT)
    for endpoint, key in (("tcp://a:1", "k"), ("", "")):
        said(agent, e.LeaderFound(endpoint, key))
        assert (agent.contact.leader, agent.contact.leader_key) == (endpoint, key)


def test_rank_0_alone_publishes_where_its_daemon_is_reached() -> None:
    door = e.Heard(m.Door("tcp://a:1", "k"))
    assert said(Agent(0, PLACEMENT), door) == [e.PublishLeader("tcp://a:1", "k")]
    assert said(Agent(1, PLACEMENT), door) == []
