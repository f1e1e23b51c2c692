"""One node's ends together: a turn's effects as bundles, bundles as events, and trust in force."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from eplbd.config import load
from eplbd.core import messages as m
from eplbd.core.cluster import Address, Entry, HangUp, Led, Nod, Relayed, RelayGone, Up, Via
from eplbd.core.events import Note, Send
from eplbd.errors import ConfigError
from eplbd.runtime.bundles import Bundles, Way
from eplbd.runtime.cluster import ASTRAY, UNTRUSTED, UPLINKS_MAX, Cluster, open_cluster
from eplbd.runtime.complaints import Complaints
from eplbd.runtime.identity import Identity, identity
from eplbd.runtime.keys import generate
from tests.runtime.nodes import MIB, free_endpoint, knocking, say, until

pytestmark = pytest.mark.anyio


@dataclass
class Node:
    """A daemon's ends, with a core that only listens."""

    cluster: Cluster
    known: Identity
    trust: Path
    heard: list[object]
    notes: list[Note]

    @property
    def address(self) -> Address:
        return self.known.address

    @property
    def key(self) -> bytes:
        return self.known.pair.public

    def failed(self) -> bool:
        return self.cluster.failed

    def turn(self, *effects: Send | Nod | Up | HangUp) -> list[RelayGone]:
        for effect in effects:
            self.cluster.take(effect)
        return self.cluster.flush()

    def noted(self, event: str) -> list[Note]:
        return [note for note in self.notes if note.event == event]

    def entries(self, kind: type[Relayed | Led]) -> list[tuple[str, int, object]]:
        return [
            (entry.group, entry.rank, entry.message)
            for event in self.heard
            if isinstance(event, kind)
            for entry in event.entries
        ]


@dataclass
class Rack:
    """Nodes that trust each other, by what lies in their directories."""

    folder: Path
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        generate(self.folder / name / "keys")
        trust = self.folder / name / "trust"
        trust.mkdir()
        trust.chmod(0o755)
        for other in self.names:
            self.introduce(name, other)
            self.introduce(other, name)
        self.names.append(name)

    def introduce(self, one: str, other: str) -> None:
        """Let `one` trust `other`."""
        shutil.copy(self.folder / other / "keys/node.key", self.trusted(one, other))

    def trusted(self, one: str, other: str) -> Path:
        return self.folder / one / "trust" / f"{other}.key"

    def known(self, name: str) -> Identity:
        folder = self.folder / name
        flags = {
            "cluster.listen": free_endpoint(),
            "cluster.key_file": str(folder / "keys/node.key_secret"),
            "cluster.trust_dir": str(folder / "trust"),
        }
        known = identity(load(flags=flags).config, {})
        assert known is not None
        return known

    @contextlib.asynccontextmanager
    async def serving(self, name: str) -> AsyncIterator[Node]:
        known, notes, heard = self.known(name), list[Note](), list[object]()
        with open_cluster(known, MIB, notes.append) as cluster:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cluster.run, lambda *events: heard.extend(events))
                await anyio.wait_all_tasks_blocked()
                yield Node(cluster, known, self.folder / name / "trust", heard, notes)
                tasks.cancel_scope.cancel()


@pytest.fixture
def rack(tmp_path: Path) -> Rack:
    made = Rack(tmp_path)
    made.add("leader")
    made.add("relay")
    return made


def pulse(rank: int) -> Entry:
    return Entry("g", rank, 1, m.Pulse(rank))


async def linked(relay: Node, leader: Node) -> None:
    """Say something up until it was heard."""

    def heard() -> bool:
        relay.turn(Up(leader.address))
        return any(isinstance(event, Relayed) for event in leader.heard)

    await until(heard, "the leader heard the relay")


async def test_a_turn_makes_one_bundle_for_each_node(rack: Rack) -> None:
    async with rack.serving("leader") as leader, rack.serving("relay") as relay:
        await linked(relay, leader)
        leader.heard.clear()
        before = relay.cluster.statistics().bundles.sent["up"]
        relay.turn(Up(leader.address, (pulse(4),)), Up(leader.address, (pulse(5), pulse(6))))
        assert relay.cluster.statistics().bundles.sent["up"] == before + 1
        await until(lambda: len(leader.entries(Relayed)) == 3, "all came up")
        assert leader.entries(Relayed) == [("g", rank, m.Pulse(rank)) for rank in (4, 5, 6)]
        assert {e.relay for e in leader.heard if isinstance(e, Relayed)} == {relay.key}
        vias = [Via(relay.key, "g", rank) for rank in (4, 5)]
        assert leader.turn(*(Send(via, m.Beat(1)) for via in vias), Nod(relay.key)) == []
        assert leader.cluster.statistics().bundles.sent["down"] == 1
        await until(lambda: relay.entries(Led), "the orders came down")
        assert relay.entries(Led) == [("g", 4, m.Beat(1)), ("g", 5, m.Beat(1))]
        assert {e.leader for e in relay.heard if isinstance(e, Led)} == {leader.address}
        assert leader.turn(Nod(relay.key)) == []
        await until(lambda: len(relay.heard) == 2, "the empty one came, too")


async def test_a_relay_that_nobody_reaches_is_gone(rack: Rack) -> None:
    async with rack.serving("leader") as leader:
        assert leader.turn(Nod(b"never seen")) == [RelayGone(b"never seen")]
        async with rack.serving("relay") as relay:
            await linked(relay, leader)
            assert leader.turn(Nod(relay.key)) == []
        await until(lambda: leader.turn(Nod(relay.key)), "the way to it is gone")
        assert leader.turn(Nod(relay.key)) == [RelayGone(relay.key)]
        assert leader.cluster.statistics().dropped["unreachable"] > 1


async def test_hanging_up_ends_the_uplink(rack: Rack) -> None:
    async with rack.serving("leader") as leader, rack.serving("relay") as relay:
        await linked(relay, leader)
        await until(lambda: relay.cluster.statistics().linked == 1, "it stands")
        assert relay.turn(Up(leader.address), HangUp(leader.address)) == []
        assert relay.cluster.statistics().uplinks == 0
        await until(lambda: leader.turn(Nod(relay.key)), "the leader has no way to it")


async def test_a_leader_that_nobody_vouches_for_is_not_dialled(rack: Rack) -> None:
    """The group's store says who leads, and whoever writes there may lie."""
    rack.trusted("relay", "leader").unlink()
    rack.add("third")
    async with rack.serving("leader") as leader, rack.serving("relay") as relay:
        for _ in range(5):
            relay.turn(Up(leader.address, (pulse(4),)))
        assert relay.cluster.statistics().uplinks == 0
        assert relay.cluster.statistics().refused[UNTRUSTED] == 5
        (said,) = relay.noted("leader refused")
        assert said.fields["leader"] == leader.address.endpoint
        rack.introduce("relay", "leader")
        await relay.cluster.reload(str(relay.trust))
        await linked(relay, leader)
        (said,) = relay.noted("trust reloaded")
        assert said.fields == {"added": ["leader"], "withdrawn": []}


@pytest.mark.parametrize(
    "endpoint",
    [
        *("ipc:///run/eplbd/control.sock", "inproc://zeromq.zap.01", "tcp://0.0.0.0:9477"),
        *("tcp://eth0;10.0.0.1:9477", "pgm://10.0.0.1:9477", "tcp://10.0.0.1", "", "x" * 256),
    ],
)
async def test_no_worker_makes_the_daemon_dial_what_is_no_leader(rack: Rack, endpoint: str) -> None:
    async with rack.serving("relay") as relay:
        leader = rack.known("leader")
        relay.turn(Up(Address(endpoint, leader.address.key)))
        assert relay.cluster.statistics().uplinks == 0
        assert relay.cluster.statistics().refused[ASTRAY] == 1


@pytest.mark.parametrize("host", ["-", "a..b", "x" * 200, "127.1", "256.256.256.256"])
async def test_a_name_that_is_none_ends_nothing(rack: Rack, host: str) -> None:
    async with rack.serving("leader") as leader, rack.serving("relay") as relay:
        relay.turn(Up(Address(f"tcp://{host}:1", leader.address.key)))
        assert relay.cluster.statistics().uplinks == 1
        await linked(relay, leader)
        assert relay.cluster.statistics().uplinks == 2


async def test_leaders_that_are_dialled_are_bounded(rack: Rack) -> None:
    async with rack.serving("relay") as relay:
        leader = rack.known("leader")
        for port in range(1, UPLINKS_MAX + 10):
            relay.turn(Up(Address(f"tcp://127.0.0.1:{port}", leader.address.key)))
        assert relay.cluster.statistics().uplinks == UPLINKS_MAX
        assert relay.cluster.statistics().refused[ASTRAY] == 9


async def test_a_withdrawn_relay_is_gone_at_once(rack: Rack) -> None:
    async with rack.serving("leader") as leader, rack.serving("relay") as relay:
        await linked(relay, leader)
        rack.trusted("leader", "relay").unlink()
        await leader.cluster.reload(str(leader.trust))
        assert leader.heard[-1] == RelayGone(relay.key)
        assert leader.turn(Send(Via(relay.key, "g", 4), m.Beat(1))) == [RelayGone(relay.key)]
        (said,) = leader.noted("trust reloaded")
        assert said.fields == {"added": [], "withdrawn": ["relay"]}

        def refused() -> bool:
            relay.turn(Up(leader.address, (pulse(4),)))
            return bool(leader.noted("node refused"))

        await until(refused, "it came again and was refused")
        assert leader.heard[-1] == RelayGone(relay.key)
        (said,) = leader.noted("node refused")
        assert said.fields == {"reason": "unknown key", "key": relay.key.decode()}


async def test_a_withdrawn_leader_is_hung_up_on(rack: Rack) -> None:
    async with rack.serving("leader") as leader, rack.serving("relay") as relay:
        await linked(relay, leader)
        rack.trusted("relay", "leader").unlink()
        await relay.cluster.reload(str(relay.trust))
        assert relay.cluster.statistics().uplinks == 0
        relay.turn(Up(leader.address))
        assert relay.cluster.statistics().uplinks == 0
        assert relay.cluster.statistics().refused[UNTRUSTED] == 1


async def test_a_fault_in_the_directory_is_said_and_withdraws_all_the_same(rack: Rack) -> None:
    async with rack.serving("leader") as leader, rack.serving("relay") as relay:
        await linked(relay, leader)
        rack.trusted("leader", "relay").write_text("not a certificate")
        await leader.cluster.reload(str(leader.trust))
        assert leader.failed()
        (said,) = leader.noted("key not taken")
        assert "relay.key" in str(said.fields["reason"])
        assert RelayGone(relay.key) in leader.heard
        rack.introduce("leader", "relay")
        await leader.cluster.reload(str(leader.trust))
        assert not leader.failed()
        leader.heard.clear()
        await linked(relay, leader)


async def test_a_directory_that_cannot_be_read_leaves_trust_as_it_was(rack: Rack) -> None:
    async with rack.serving("leader") as leader, rack.serving("relay") as relay:
        await linked(relay, leader)
        await leader.cluster.reload(str(leader.trust / "none"))
        assert leader.failed()
        assert leader.noted("trust not reloaded")
        assert leader.turn(Nod(relay.key)) == []


async def test_a_trusted_node_that_repeats_itself_is_refused(rack: Rack) -> None:
    """CURVE keeps a network from it; this is a process that holds a trusted key."""
    async with rack.serving("leader") as leader:
        relay = rack.known("relay")
        bundles = Bundles(MIB, Complaints((), lambda _: None))
        ((frames, _),) = bundles.packed(Way.UP, leader.key, [pulse(4)])
        with knocking(leader.address, relay.pair) as knocker:
            for _ in range(3):
                await say(knocker, [bytes(frame) for frame in frames])
            await until(lambda: leader.cluster.statistics().refused["replayed"] == 2, "refused")
        assert leader.entries(Relayed) == [("g", 4, m.Pulse(4))]
        (said,) = leader.noted("bundle refused")
        assert said.fields["node"] == "relay"
        with knocking(leader.address, relay.pair) as knocker:
            await say(knocker, [b"noise"])
            await until(lambda: leader.cluster.statistics().refused["garbled"], "noise, too")


async def test_a_node_alone_has_nothing_to_do() -> None:
    assert identity(load().config, {}) is None
    with open_cluster(None, MIB, lambda _: None) as cluster:
        await cluster.run(lambda *_: None)
        await cluster.reload("/nowhere")
        assert cluster.flush() == []
        assert not cluster.failed
        assert cluster.statistics().uplinks == cluster.statistics().relays == 0


async def test_an_address_that_is_taken_is_refused(rack: Rack) -> None:
    known = rack.known("leader")
    with (
        open_cluster(known, MIB, lambda _: None),
        pytest.raises(ConfigError, match=r"cluster\.listen"),
        open_cluster(known, MIB, lambda _: None),
    ):
        pass
