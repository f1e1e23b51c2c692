"""Which group a daemon leads and which it relays, and how a leader sees ranks of other nodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplbd.core import commands as c
from eplbd.core import messages as m
from eplbd.core.admission import GROUPS_MAX
from eplbd.core.cluster import (
    NODE,
    Address,
    Entry,
    HangUp,
    Led,
    Nod,
    NodeHeat,
    Relayed,
    RelayGone,
    Up,
    Via,
)
from eplbd.core.events import Effect, Event, Note, Received, Reconfigured, Send, Tick
from eplbd.core.node import Node
from eplbd.core.overview import overview
from eplbd.core.placement import Placement
from eplbd.core.relays import FORGOTTEN_S
from eplbd.core.settings import ClusterSettings, Settings
from tests.hellos import hello as plain

HERE, THERE, ELSEWHERE = (Address(f"tcp://{name}:1", f"key {name}") for name in "abc")
R1, R2 = b"relay 1", b"relay 2"
PLACED = Placement.linear(1, 4, 2, 3)
SETTINGS = Settings()


def hello(rank: int, leader: Address | None = None) -> m.Hello:
    endpoint, key = (leader.endpoint, leader.key) if leader is not None else ("", "")
    shape = {"ranks": 2, "layers": 1, "experts": 4, "slots_per_rank": 3}
    return plain(rank=rank, leader=endpoint, leader_key=key, **shape)


def node(settings: Settings = SETTINGS, own: Address | None = HERE) -> Node:
    made = Node(settings, own)
    made.step(Tick(0.0))
    return made


def step(made: Node, *events: Event) -> list[Effect]:
    effects = []
    for event in events:
        effects += made.step(event)
        made.check()
    return effects


def local(rank: int, *args: Address, peer: bytes = b"", **changes: object) -> Received:
    said = replace(hello(rank, *args), **changes)  # type: ignore[arg-type]  # as named
    return Received(peer or b"rank %d" % rank, 1, said)


def from_relay(relay: bytes, rank: int, message: m.FromAgent, seq: int = 1) -> Relayed:
    return Relayed(relay, (Entry("g", rank, seq, message),))


def told(effects: list[Effect], kind: type[m.FromLeader]) -> list[object]:
    return [e.peer for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


# --- who leads ----------------------------------------------------------------------------------


def test_who_has_rank_0_leads_and_says_where_to_find_it() -> None:
    made = node()
    effects = step(made, local(0))
    assert Send(b"rank 0", m.Door(HERE.endpoint, HERE.key)) in effects
    assert [*made.balancers] == ["g"]


@pytest.mark.parametrize("leader", [[], [HERE]], ids=["unknown", "this daemon"])
def test_without_another_leader_it_leads(leader: list[Address]) -> None:
    made = node()
    step(made, local(1, *leader))
    assert ([*made.balancers], [*made.relays.groups]) == (["g"], [])


def test_a_daemon_that_keeps_to_its_node_relays_nothing() -> None:
    made = node(own=None)
    effects = step(made, local(0), local(1, THERE))
    assert told(effects, m.Door) == []
    assert [*made.balancers] == ["g"]


def test_ranks_that_name_another_leader_are_relayed() -> None:
    made = node()
    effects = step(made, local(1, THERE), Received(b"rank 1", 2, m.Prepared(1, 5)))
    sent = [e for e in effects if isinstance(e, Up)]
    assert [(e.leader, e.entries[0].message) for e in sent] == [
        (THERE, hello(1, THERE)),
        (THERE, m.Prepared(1, 5)),
    ]
    assert [*made.balancers] == []
    assert step(made, Led(THERE, (Entry("g", 1, 0, m.Beat(1)),)))[-1] == Send(b"rank 1", m.Beat(1))


def test_orders_of_another_than_the_leader_are_not_handed_on() -> None:
    made = node()
    step(made, local(1, THERE))
    assert step(made, Led(ELSEWHERE, (Entry("g", 1, 0, m.Beat(1)),))) == []
    assert not made.relays.groups["g"].linked


def test_what_the_operator_says_goes_before_what_workers_say() -> None:
    given = replace(SETTINGS, cluster=ClusterSettings(THERE.endpoint, THERE.key))
    made = node(given)
    step(made, local(1, ELSEWHERE))
    assert made.relays.groups["g"].leader == THERE
    effects = step(made, Reconfigured(SETTINGS), local(1, ELSEWHERE))
    assert made.relays.groups["g"].leader == ELSEWHERE
    assert HangUp(THERE) in effects


def test_what_waited_for_rank_0_is_relayed_once_the_leader_is_known() -> None:
    made = node()
    step(made, local(1), local(1, THERE))
    assert ([*made.balancers], [*made.relays.groups]) == ([], ["g"])


def test_a_rank_that_knows_no_leader_yet_is_relayed_with_the_others() -> None:
    made = node()
    step(made, local(1, THERE, ranks=3), local(2, ranks=3))
    assert made.relays.groups["g"].peers == {1: b"rank 1", 2: b"rank 2"}


def test_rank_0_here_ends_relaying() -> None:
    made = node()
    effects = step(made, local(1, THERE), local(0))
    assert HangUp(THERE) in effects
    assert ([*made.balancers], [*made.relays.groups]) == (["g"], [])
    assert told(step(made, Received(b"rank 1", 2, m.Pulse(1))), m.Greet) == [b"rank 1"]


def test_where_rank_0_is_nobody_is_sent_away_by_an_old_address() -> None:
    made = node()
    step(made, local(0), local(1, THERE))
    assert made.balancers["g"].group.sessions.keys() == {0, 1}


def test_a_younger_life_may_be_led_elsewhere_and_an_older_one_has_no_say() -> None:
    made = node()
    step(made, local(0), local(1, THERE, incarnation="2"))
    assert [*made.relays.groups] == ["g"]
    for late in (local(0), local(1, ELSEWHERE)):
        assert told(step(made, late), m.Refused) == [late.peer]
    assert (made.relays.groups["g"].incarnation, made.relays.groups["g"].leader) == ("2", THERE)
    step(made, local(2, THERE, incarnation="2", ranks=3))
    effects = step(made, local(1, THERE, incarnation="3", peer=b"new"))
    assert HangUp(THERE) not in effects
    for old in (b"rank 1", b"rank 2"):
        assert told(step(made, Received(old, 2, m.Pulse(1))), m.Greet) == [old]


def test_two_groups_of_one_leader_share_the_line() -> None:
    made = node()
    step(made, local(1, THERE), local(1, THERE, group="h", peer=b"other"))
    assert HangUp(THERE) not in step(made, local(0))
    assert HangUp(THERE) in step(made, local(0, group="h", peer=b"first"))


def test_a_group_that_left_the_node_is_forgotten() -> None:
    made = node()
    step(made, local(1, THERE))
    assert HangUp(THERE) not in step(made, Tick(FORGOTTEN_S))
    assert HangUp(THERE) in step(made, Tick(FORGOTTEN_S + 1))
    assert made.members == {}


def test_as_many_groups_as_are_led_may_be_relayed_and_no_more() -> None:
    made = node()
    names = [f"g{i}" for i in range(GROUPS_MAX + 1)]
    effects = step(made, *(local(1, THERE, group=n, peer=n.encode()) for n in names))
    assert told(effects, m.Refused) == [names[-1].encode()]
    assert told(step(made, local(1, THERE, group="g", ranks=0)), m.Refused) == [b"rank 1"]


def test_nothing_is_relayed_twice() -> None:
    """Two daemons that take each other for the leader send nothing in circles."""
    made = node()
    step(made, local(1, THERE))
    effects = step(made, from_relay(R1, 0, hello(0)))
    (refused,) = [e for e in effects if isinstance(e, Send)]
    assert isinstance(refused.message, m.Refused)
    assert THERE.endpoint in refused.message.reason
    assert not [e for e in effects if isinstance(e, Up)]


# --- ranks of other nodes -----------------------------------------------------------------------


def stands(term: int) -> m.Stands:
    return m.Stands(term, 0, PLACED.digest, m.Standing.IDLE, 0, 0, 0, PLACED.slots)


def gathered() -> Node:
    made = node()
    step(made, local(0), from_relay(R1, 1, hello(1)))
    step(made, Received(b"rank 0", 2, stands(1)), from_relay(R1, 1, stands(1), 2))
    assert made.balancers["g"].group.phase == "ready"
    return made


def test_ranks_of_other_nodes_are_ranks() -> None:
    made = node()
    effects = step(made, local(0), from_relay(R1, 1, hello(1)))
    assert told(effects, m.Welcome) == [b"rank 0", Via(R1, "g", 1)]
    assert step(made, from_relay(R1, 0, m.Pulse(1))) == [Send(Via(R1, "g", 0), m.Greet())]


def test_nodes_are_told_apart_by_their_daemons() -> None:
    """Containers may all be called alike."""
    topology = gathered().balancers["g"].group.topology
    assert topology is not None
    assert topology.node_of == (0, 1)


@pytest.mark.parametrize("other", [from_relay(R2, 1, hello(1)), local(1)], ids=["relay", "local"])
def test_who_lives_is_not_taken_over_another_way(other: Event) -> None:
    made = gathered()
    before = made.statistics().rejected
    assert len(told(step(made, other), m.Refused)) == 1
    assert made.statistics().rejected == before + 1
    assert made.balancers["g"].group.sessions[1].peer == Via(R1, "g", 1)
    step(made, Tick(SETTINGS.session.silence_s + 0.1), other)
    assert made.balancers["g"].group.sessions[1].peer != Via(R1, "g", 1), "it was silent"


def test_the_same_way_it_may_come_again() -> None:
    made = gathered()
    assert told(step(made, from_relay(R1, 1, hello(1))), m.Refused) == []


def test_a_relay_that_is_gone_takes_its_ranks_along() -> None:
    made = gathered()
    effects = step(made, RelayGone(R2))
    assert not made.balancers["g"].group.missing
    effects = step(made, RelayGone(R1))
    assert [e.fields["rank"] for e in effects if isinstance(e, Note)] == [1]
    assert made.balancers["g"].group.missing == {1}


def test_relays_that_live_are_nodded_to_every_heartbeat() -> None:
    made = node()
    step(made, Relayed(R1))
    beat = SETTINGS.session.heartbeat_s
    seen = [Nod(R1) in step(made, Tick(tenths / 10)) for tenths in range(1, 60)]
    assert sum(seen) == pytest.approx(SETTINGS.session.silence_s / beat, abs=1)
    assert not any(seen[35:]), "it fell silent"
    step(made, Relayed(R1), RelayGone(R1))
    assert Nod(R1) not in step(made, Tick(10.0))


def heat(first: int, *ranks: int, most: int = 3) -> Entry:
    counts = np.full((len(ranks), 2, 1, 3), most, dtype=np.uint8)
    told = np.full((len(ranks), 2), 3 * most)
    dummy = np.zeros((len(ranks), 2), dtype=np.bool_)
    numbers = np.array(ranks, dtype=np.int32)
    made = NodeHeat(0, first, "decode", numbers, counts, told, told.astype(np.int32), dummy)
    return Entry("g", NODE, 0, made)


def test_heat_of_a_node_is_booked_and_a_sign_of_its_ranks() -> None:
    made = gathered()
    step(made, Tick(1.0), Relayed(R1, (heat(0, 1),)))
    (ledger,) = [b.ledger for b in made.balancers.values()]
    assert ledger is not None
    assert ledger.statistics().reports == 1
    session = made.balancers["g"].group.sessions[1]
    assert (session.reports, session.heat_at, session.last_heard) == (1, 1.0, 1.0)


@pytest.mark.parametrize("relay", [R1, R2])
def test_a_relay_speaks_for_its_own_ranks_alone(relay: bytes) -> None:
    made = gathered()
    step(made, Relayed(relay, (heat(0, 0, 1),)))
    assert made.statistics().unknown == 1
    ledger = made.balancers["g"].ledger
    assert ledger is not None
    assert ledger.statistics().reports == 0


def test_heat_that_cannot_be_is_refused_and_laid_to_the_relay() -> None:
    made = gathered()
    before = made.statistics().rejected
    wrong = heat(0, 1)
    assert isinstance(wrong.message, NodeHeat)
    bad = replace(wrong, message=replace(wrong.message, phase="nap"))
    (note,) = step(made, Relayed(R1, (bad,)))
    assert isinstance(note, Note)
    assert note.fields["peer"] == "rank 1 via relay 1"
    assert made.statistics().rejected == before + 1
    assert made.balancers["g"].group.sessions[1].reports == 0


# --- looking and ordering -----------------------------------------------------------------------


def test_a_look_tells_of_what_is_relayed() -> None:
    made = node()
    step(made, local(1, THERE), Tick(1.0))
    (seen,) = overview(made).relays
    assert (seen.group, seen.leader, seen.ranks, seen.linked) == ("g", THERE.endpoint, (1,), False)
    assert (seen.last_heard_age_s, seen.forwarded) == (None, 1)
    assert seen.reason
    step(made, Led(THERE), Tick(1.5))
    (seen,) = overview(made).relays
    assert (seen.linked, seen.last_heard_age_s, seen.reason) == (True, 0.5, "")


@pytest.mark.parametrize(
    "command", [c.Force("g"), c.Force(), c.Pause(), c.Freeze("g"), c.Drain(1, "g"), c.Save("x")]
)
def test_commands_for_what_is_led_elsewhere_are_refused_with_the_place(command: c.Command) -> None:
    made = node()
    step(made, local(1, THERE))
    (answer,) = step(made, c.Commanded(1, command, "alice", "why"))
    assert isinstance(answer, c.Answer)
    assert THERE.endpoint in answer.refused
