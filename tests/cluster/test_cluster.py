"""Daemons of three hosts are cut off, killed and given other keys, in the middle of epochs.

What holds after each: balancing has resumed by itself, no forward of any rank waited beyond the
bound, all ranks came the same way to the same map, and no output differed from that of a twin that
never moves. Ranks and their collectives are real, gloo between network namespaces.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.chaos.lab import RECOVERY_S
from tests.chaos.waiting import until
from tests.cluster.lab import ClusterLab, keygen, trust

TEST_S = 400

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]

nightly = pytest.mark.skipif(
    not os.environ.get("EPLBD_NIGHTLY"), reason="nightly: another way to lose a daemon"
)

LEADER, RELAY, OTHER = 0, 1, 2
CUT_S = 10.0


def test_a_node_is_cut_off_for_ten_seconds(lab: ClusterLab) -> None:
    """Its ranks know no leader meanwhile, the others no epoch: all serve on what they have."""
    with lab.scenario("a node is cut off"):
        lab.in_an_epoch()
        mark = lab.daemon.mark()
        lab.room.wire.cut(lab.room.hosts[RELAY].name)
        lab.forwards_on(CUT_S)
        lost = {line["rank"] for line in lab.daemon.since(mark, "rank lost")}
        assert lost == {2, 3}, lab.story()
        lab.connected(RELAY, whether=False)
        lab.connected(LEADER, whether=True)
        lab.room.wire.cut()
        lab.connected(RELAY, whether=True)


@nightly
def test_the_leader_is_cut_off(lab: ClusterLab) -> None:
    with lab.scenario("the leader is cut off"):
        lab.in_an_epoch()
        lab.room.wire.cut(lab.room.hosts[LEADER].name)
        lab.forwards_on(CUT_S)
        for host in (RELAY, OTHER):
            lab.connected(host, whether=False)
        lab.room.wire.cut()


@nightly
def test_the_leader_is_killed(lab: ClusterLab) -> None:
    with lab.scenario("the leader is killed"):
        lab.in_an_epoch()
        lab.daemons[LEADER].kill()
        for host in (LEADER, RELAY, OTHER):
            lab.connected(host, whether=False)


@nightly
def test_a_relay_is_killed(lab: ClusterLab) -> None:
    """It costs its own ranks their leader, and nobody anything else."""
    with lab.scenario("a relay is killed"):
        lab.in_an_epoch()
        lab.daemons[RELAY].kill()
        lab.connected(RELAY, whether=False)
        lab.connected(OTHER, whether=True)


@nightly
def test_leader_and_relay_are_killed(lab: ClusterLab) -> None:
    with lab.scenario("leader and relay are killed"):
        lab.in_an_epoch()
        lab.daemons[LEADER].kill()
        lab.daemons[RELAY].kill()
        lab.connected(OTHER, whether=False)


@nightly
def test_all_daemons_restart(lab: ClusterLab) -> None:
    """As an upgrade does, one after the other and without a pause."""
    with lab.scenario("all daemons restart"):
        lab.in_an_epoch()
        for served in lab.daemons:
            served.signal(signal.SIGTERM)
            assert served.ended() == 0
            served.start()


@nightly
def test_a_relay_has_another_key(lab: ClusterLab) -> None:
    """The new one is trusted upon a reload, the old one is not any more."""
    with lab.scenario("a relay has another key"):
        lab.in_an_epoch()
        relay = lab.daemons[RELAY]
        keygen(relay)
        relay.kill()
        relay.start()
        lab.connected(RELAY, whether=False)
        _spread_key_of(lab, RELAY)
        lab.connected(RELAY, whether=True)


@nightly
def test_the_leader_has_another_key(lab: ClusterLab) -> None:
    """The ranks tell it to the relays; these take it because their operator does, too."""
    with lab.scenario("the leader has another key"):
        lab.in_an_epoch()
        leader = lab.daemons[LEADER]
        keygen(leader)
        leader.kill()
        leader.start()
        lab.connected(OTHER, whether=False)
        _spread_key_of(lab, LEADER)


@nightly
def test_a_key_is_trusted_no_more(lab: ClusterLab) -> None:
    """Taken out of the leader's directory, it is cut off at the reload; put back, it is let in."""
    with lab.scenario("a key is trusted no more"):
        lab.in_an_epoch()
        leader, name = lab.daemons[LEADER], lab.room.hosts[RELAY].name
        (leader.folder / "trust" / f"{name}.key").unlink()
        leader.signal(signal.SIGHUP)
        lab.connected(RELAY, whether=False)
        lab.connected(OTHER, whether=True)
        trust(leader, lab.daemons[RELAY], name)
        leader.signal(signal.SIGHUP)
        lab.connected(RELAY, whether=True)


@nightly
def test_the_engine_itself_stalls(lab: ClusterLab) -> None:
    """Its own network goes for a while: the engine waits, within its own timeout, and eplbd too."""
    if not lab.sound:
        lab.build()
    lab.sound = False
    lab.in_an_epoch()
    host = lab.room.hosts[OTHER]
    lab.room.unplug(host)
    before = lab.group.newest()
    until(lambda: _stands_still(lab), RECOVERY_S, "the collectives wait")
    lab.room.plug(host)
    lab.group.until(lambda now: min(r.forward for r in now) > before + 20, "they go on", RECOVERY_S)
    lab.settles_further()
    reports = lab.group.audit()
    lab.one_map(reports)
    assert [r.wrong for r in reports] == [[]] * len(reports)
    lab.sound = True


def _stands_still(lab: ClusterLab) -> bool:
    forwards = [report.forward for report in lab.group.reports()]
    return forwards == [report.forward for report in lab.group.reports()]


def _spread_key_of(lab: ClusterLab, index: int) -> None:
    """Give a host's new public key to all others, and let them read it."""
    for served in lab.daemons:
        if served is not lab.daemons[index]:
            trust(served, lab.daemons[index], lab.room.hosts[index].name)
            served.signal(signal.SIGHUP)
