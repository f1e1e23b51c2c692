"""The agent's machine by hand: what other threads tell it too late."""

import pytest

from eplbd.core.agent import Agent
from eplbd.core.agent_events import Flipped, Neared
from eplbd.core.messages import Standing
from eplbd.core.placement import Placement
from eplbd.errors import LocalProtocolError

PLACEMENT = Placement.linear(1, 4, 2, 3)


def test_a_word_from_an_epoch_that_is_over_changes_nothing() -> None:
    """The forward thread tells that it nears a flip while the register ends the epoch."""
    agent = Agent(0, PLACEMENT)
    assert agent.step(Neared(1, 3, 1)) == []
    assert agent.standing is Standing.IDLE
    agent.check()


def test_a_flip_that_nobody_armed_cannot_happen() -> None:
    with pytest.raises(LocalProtocolError, match="cannot happen"):
        Agent(0, PLACEMENT).step(Flipped(1, 3, 20))
