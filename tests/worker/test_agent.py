"""The agent's threads around a real socket, whatever becomes of the daemon or of themselves.

That all ranks run each forward under one map, with the weights that this map names, is asserted
inside every forward of these tests.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eplbd.core import agent_events as a
from eplbd.core import messages as m
from eplbd.core.messages import Gate, Verdict
from eplbd.core.settings import BalanceSettings, SessionSettings, Settings
from eplbd.wire.messages import AGENT, LEADER
from tests.worker.agents import EAGER, Daemon, Group, serving
from tests.worker.waiting import until

STILL = replace(EAGER, balance=BalanceSettings(mode="static"))
"""A daemon that never rebalances."""


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/d.sock"


@pytest.fixture
def daemons(endpoint: str) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons; all are gone at the end."""
    started: list[Daemon] = []

    def start(settings: Settings = EAGER) -> Daemon:
        started.append(Daemon(endpoint, settings))
        return started[-1]

    yield start
    for daemon in started:
        daemon.die()


@pytest.fixture
def group(endpoint: str) -> Iterator[Group]:
    with serving(endpoint) as made:
        yield made


Start = Callable[..., Daemon]


def nth(count: int, asked: Callable[[m.Message], bool]) -> Callable[[m.Message], bool]:
    """Whether a message is the `count`-th that `asked` says yes to."""
    left = [count]

    def is_it(message: m.Message) -> bool:
        left[0] -= asked(message)
        return left[0] == 0 and asked(message)

    return is_it


def is_flip(message: m.Message) -> bool:
    return isinstance(message, m.Decide) and message.gate is Gate.FLIP


def armed_for(daemon: Daemon) -> int:
    """The forward of the newest arm."""
    return max(said.at for said in daemon.said if isinstance(said, m.Arm))


def pending(daemon: Daemon) -> int:
    """The newest epoch that was prepared."""
    return max(said.epoch for said in daemon.said if isinstance(said, m.Prepare))


def threads_of_agents() -> Counter[str]:
    return Counter(t.name for t in threading.enumerate() if t.name.startswith("eplbd"))


def connected(group: Group) -> bool:
    return all(rank.agent.machine.connected for rank in group.ranks)


# --- with a daemon ------------------------------------------------------------------------------


def test_epochs_settle_while_forwards_run(group: Group, daemons: Start) -> None:
    daemon = daemons()
    daemon.until(lambda: group.settled(3), "three epochs settled")
    assert group.flips_agree()
    assert group.ranks[0].flips == sorted(group.ranks[0].flips)
    settled = [each for each in daemon.ended if each.outcome == "settled"]
    assert {(each.epoch, each.at) for each in settled} <= set(group.ranks[0].flips)
    figures = [rank.agent.statistics() for rank in group.ranks]
    assert all(each.sent > 10 for each in figures)
    assert [(each.dropped, each.garbled) for each in figures] == [(0, 0)] * 2
    assert daemon.node.statistics().gaps == 0


def test_the_keys_of_epochs_that_are_over_are_forgotten(group: Group, daemons: Start) -> None:
    daemon = daemons()
    daemon.until(lambda: group.settled(3), "three epochs settled")
    key = f"eplbd/g/{group.ranks[0].agent.machine.term}/1/flip/1"
    decide = group.register.decide
    # Asked under a key that nobody will use again: abort is what an absent key becomes.
    daemon.until(lambda: decide(key, Verdict.ABORT, deadline_s=1.0) is Verdict.ABORT, "forgotten")


def test_pulses_bring_the_clock_and_figures(group: Group, daemons: Start) -> None:
    daemon = daemons(STILL)
    daemon.until(
        lambda: any(isinstance(said, m.Pulse) and said.forward_s > 0 for said in daemon.heard),
        "a pulse with figures",
    )
    pulses = [said for said in daemon.heard if isinstance(said, m.Pulse)]
    assert 0 < pulses[-1].forward <= group.forward + 1
    assert 0.0 < max(pulse.forward_s for pulse in pulses) < 1.0
    assert 0.0 < max(pulse.gap_s for pulse in pulses) < 1.0


def test_a_broken_transport_costs_one_epoch(group: Group, daemons: Start) -> None:
    daemon = daemons()
    daemon.until(lambda: group.settled(1), "an epoch settled")
    lane = group.ranks[0].lane
    group.fabric.leave(lane, "the test pulls the cable")
    daemon.until(lambda: all(rank.lane > lane for rank in group.ranks), "a new lane is entered")
    epoch = max(each.epoch for each in daemon.ended) + 1
    daemon.until(lambda: group.settled(epoch), "another epoch settled")
    assert len([each for each in daemon.ended if "pulls the cable" in each.reason]) == 1


def test_the_next_daemon_hears_of_a_broken_transport(group: Group, daemons: Start) -> None:
    daemon = daemons()
    daemon.until(lambda: group.settled(1), "an epoch settled")
    daemon.until(group.idle, "nothing is under way")
    daemon.dies_before = nth(1, lambda said: isinstance(said, m.Abort))
    group.fabric.leave(group.ranks[0].lane, "the test pulls the cable")
    daemon.until(lambda: daemon.dead, "the daemon gives the epoch up, and dies")
    heir = daemons()
    heir.until(lambda: heir.ended, "an epoch ends")
    assert "broken" not in heir.ended[0].reason


# --- without one --------------------------------------------------------------------------------


def test_a_daemon_may_come_later(group: Group, daemons: Start) -> None:
    until(group.goes_on(100), "forwards without a daemon")
    assert group.idle()
    daemon = daemons()
    daemon.until(lambda: group.settled(1), "an epoch settled")
    assert [rank.agent.statistics().dropped for rank in group.ranks] == [0, 0]


DEATHS = {
    "before it opens the gate": (1, lambda s: isinstance(s, m.Decide), False),
    "before anybody stages": (1, lambda s: isinstance(s, m.Stage), False),
    "when one rank stages": (2, lambda s: isinstance(s, m.Stage), False),
    "before anybody is armed": (1, lambda s: isinstance(s, m.Arm), False),
    "when one rank is armed": (2, lambda s: isinstance(s, m.Arm), False),
    "when all are armed": (1, is_flip, False),
    "before it confirms": (1, lambda s: isinstance(s, m.Confirm), True),
    "when one rank is confirmed": (2, lambda s: isinstance(s, m.Confirm), True),
}
"""Which message a daemon did not live to send, and whether the register says commit."""


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
def test_no_forward_hangs_when_the_daemon_dies(group: Group, daemons: Start, death: str) -> None:
    count, asked, commits = DEATHS[death]
    daemon = daemons()
    daemon.dies_before = nth(count, asked)
    daemon.until(lambda: daemon.dead, "the daemon dies")
    epoch = pending(daemon) if commits else 0
    until(lambda: group.idle() and group.settled(epoch), "the ranks end the epoch alone")
    until(group.goes_on(), "forwards go on")
    assert [rank.epoch for rank in group.ranks] == [epoch, epoch]
    assert group.flips_agree()
    heir = daemons()
    heir.until(lambda: group.settled(epoch + 1), "the next daemon settles an epoch")


def test_the_one_wait_ends_when_the_register_answers(group: Group, daemons: Start) -> None:
    """The registrar asks again and again; forwards stand still, then go on."""
    daemon, register = daemons(), group.register.stalled

    def falls_silent_with_the_register(message: m.Message) -> bool:
        if isinstance(message, m.Arm) and not register.locked():
            register.acquire()
        return is_flip(message)

    daemon.dies_before = falls_silent_with_the_register
    try:
        daemon.until(lambda: daemon.dead, "the daemon dies, all being armed")
        at = armed_for(daemon)
        story = group.ranks[0].agent.machine.story
        until(lambda: any(r.hook_forward == at for r in group.ranks), "the armed forward begins")
        until(lambda: sum(isinstance(s, a.RegisterFailed) for s in story) > 2, "asked repeatedly")
        assert all(rank.hook_forward <= at for rank in group.ranks)
    finally:
        register.release()
    until(lambda: group.forward > at, "forwards go on")
    until(group.idle, "the epoch is over")
    assert [rank.flips for rank in group.ranks] == [[], []]


def test_a_word_from_a_flip_that_is_over_hurts_nobody(
    group: Group, daemons: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward thread neared its flip while the agent ended the epoch."""
    held: list[a.AgentEvent] = []
    tell = {rank.rank: rank.agent.hook._tell for rank in group.ranks}  # noqa: SLF001
    for rank in group.ranks:
        monkeypatch.setattr(rank.agent.hook, "_tell", held.append)
    daemon = daemons()
    daemon.dies_before = nth(1, is_flip)
    daemon.until(lambda: daemon.dead, "the daemon dies, all being armed")
    until(lambda: group.idle() and len(held) == 2, "both neared it, and the epoch is over")
    for rank, event in zip(group.ranks, held, strict=True):
        assert isinstance(event, a.Neared)
        monkeypatch.undo()
        tell[rank.rank](event)
    heir = daemons()
    heir.until(lambda: group.settled(1), "the next daemon settles an epoch")
    assert all(rank.agent.alive for rank in group.ranks)


# --- without an agent ---------------------------------------------------------------------------


def dies_on(
    monkeypatch: pytest.MonkeyPatch, group: Group, happens: Callable[[a.AgentEvent], bool]
) -> None:
    """Let the machine of rank 1 raise instead of taking an event."""
    machine = group.ranks[1].agent.machine
    step = machine.step

    def raising(event: a.AgentEvent) -> list[a.AgentEffect]:
        if happens(event):
            raise RuntimeError("a bug of our own")
        return step(event)

    monkeypatch.setattr(machine, "step", raising)


def brings_a_verdict(event: a.AgentEvent) -> bool:
    """The leader's, or the register's if this rank was the scribe."""
    if isinstance(event, a.RegisterAnswered):
        return event.gate is Gate.FLIP and event.verdict is Verdict.COMMIT
    return isinstance(event, a.Heard) and isinstance(event.message, m.Confirm)


@pytest.mark.parametrize(
    ("happens", "commits"),
    [
        (lambda event: isinstance(event, a.ArmPlaced), False),
        (brings_a_verdict, True),
    ],
    ids=["promised nothing", "missed the verdict"],
)
def test_an_agent_that_dies_leaves_its_flip_to_the_register(
    group: Group,
    daemons: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    happens: Callable[[a.AgentEvent], bool],
    commits: bool,
) -> None:
    dies_on(monkeypatch, group, happens)
    daemon = daemons()
    daemon.until(lambda: not group.ranks[1].agent.alive, "the agent dies")
    at, epoch = armed_for(daemon), pending(daemon) if commits else 0
    daemon.until(lambda: group.forward > at, "no forward hangs")
    daemon.until(group.goes_on(), "forwards go on")
    assert [rank.epoch for rank in group.ranks] == [epoch, epoch]
    assert "rank 1: the agent ended, balancing is off" in caplog.text
    assert "a bug of our own" in caplog.text
    daemon.until(lambda: 1 in daemon.node.balancers["g"].group.missing, "the leader misses it")


def test_leaving_says_goodbye_and_ends_the_threads(group: Group, daemons: Start) -> None:
    daemon = daemons()
    daemon.until(lambda: group.settled(1), "an epoch settled")
    daemon.until(group.idle, "nothing is under way")
    leaver = group.ranks[1].agent
    assert set(threads_of_agents().values()) == {2}
    leaver.__exit__()
    assert not leaver.alive
    assert len(threads_of_agents()) == 3
    assert set(threads_of_agents().values()) == {1}
    daemon.until(lambda: any(isinstance(s, m.Bye) for s in daemon.heard), "it said goodbye")
    daemon.until(group.goes_on(), "forwards go on")
    assert group.ranks[0].agent.alive


def test_leaving_while_armed_hangs_no_forward(group: Group, daemons: Start) -> None:
    daemon = daemons()
    daemon.dies_before = nth(1, is_flip)
    daemon.until(lambda: daemon.dead, "the daemon dies, all being armed")
    at = armed_for(daemon)
    group.ranks[1].agent.__exit__()
    until(lambda: group.forward > at, "forwards go on")
    assert [rank.epoch for rank in group.ranks] == [0, 0]


# --- noise --------------------------------------------------------------------------------------


def test_hostile_frames_are_counted_and_change_nothing(
    group: Group, daemons: Start, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = daemons(STILL)
    daemon.until(lambda: connected(group), "both are connected")
    term = group.ranks[0].agent.machine.term
    garbled = [
        [b""],
        [b"", b""],
        [b"\xc1" * 100],
        [bytes(frame) for frame in AGENT.encode(m.Pulse(1), 1)],
        [bytes(LEADER.encode(m.Beat(term), 1)[0]), b"extra"],
        [bytes(LEADER.encode(m.Beat(term), 1)[0])[:-1]],
        [b"\x83\xa3tag\xa4beat\xa3seq\x01\xa4body" + b"\x91" * 50_000],
    ]
    confused: list[m.FromLeader] = [
        m.Stage(term, 99),
        m.Arm(term, 99, 1, 0, 0),
        m.Confirm(term, 99, 1),
        m.Abort(term, 99, "die"),
        m.Welcome(term - 1, 1, 9.0, 9.0),
        m.Stage(term + 7, 1),
    ]
    for peer in daemon.node.members:
        assert isinstance(peer, bytes)
        for frames in garbled:
            daemon.router.send_multipart([peer, *frames])
        for message in confused:
            daemon.router.send_multipart([peer, *LEADER.encode(message, 1)])
    daemon.until(
        lambda: all(rank.agent.statistics().garbled == len(garbled) for rank in group.ranks),
        "what is garbled is counted",
    )
    daemon.until(
        lambda: all(rank.agent.statistics().stale == 2 for rank in group.ranks),
        "what is stale is counted",
    )
    daemon.until(group.goes_on(), "forwards go on")
    assert connected(group)
    assert group.idle()
    assert {rank.agent.machine.term for rank in group.ranks} == {term}
    assert "daemon's message refused" in caplog.text


def test_a_worker_that_is_refused_serves_on_and_says_so_once(
    endpoint: str, daemons: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(endpoint, odd=1) as group:
        daemon = daemons()
        daemon.until(
            lambda: sum(isinstance(said, m.Refused) for said in daemon.said) > 4, "it is refused"
        )
        daemon.until(group.goes_on(), "forwards go on")
        daemon.die()
    refusals = [each for each in caplog.records if "refuses this worker" in each.message]
    assert len(refusals) == 1
    assert refusals[0].levelno == logging.ERROR
    assert "layout_digest" in refusals[0].getMessage()


def test_a_daemon_that_does_not_read_costs_heat_and_nothing_else(
    endpoint: str, daemons: Start
) -> None:
    patient = replace(STILL, session=SessionSettings(heartbeat_s=0.02, silence_s=3_600.0))
    with serving(endpoint, layers=64) as group:
        daemon = daemons(patient)
        daemon.until(lambda: connected(group), "both are connected")

        def lost() -> list[int]:
            figures = [(r.agent.statistics(), r.ring.statistics()) for r in group.ranks]
            return [agent.lost_steps - ring.lost_steps for agent, ring in figures]

        until(lambda: min(lost()) > 0, "heat finds the socket full")
        heard, seen = len(daemon.heard), [rank.hook_forward for rank in group.ranks]
        until(group.goes_on(100), "forwards go on")

        def told() -> bool:
            pulses = [s for s in daemon.heard[heard:] if isinstance(s, m.Pulse)]
            return any(p.forward > max(seen) and p.lost_steps >= min(lost()) for p in pulses)

        daemon.until(told, "the daemon reads again, and hears what it missed")
        assert [rank.agent.statistics().dropped for rank in group.ranks] == [0, 0]
        assert daemon.node.statistics().gaps == 0
