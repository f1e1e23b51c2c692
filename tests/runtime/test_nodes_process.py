"""Several daemons as operators have them: a group over two or three nodes, and what befalls it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import zmq
from click.testing import CliRunner

from eplbd.cli import main
from eplbd.core.cluster import Address
from eplbd.runtime.keys import generate, read_pair
from tests.runtime.conftest import wait_until
from tests.runtime.nodes import free_endpoint, knocking
from tests.runtime.process import daemon, write_config
from tests.runtime.racks import Node, Rack, rack_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Rent = Callable[[int], Rack]


@pytest.fixture
def rent(tmp_path: Path) -> Iterator[Rent]:
    """So many nodes that trust each other; their daemons are not started yet."""
    with ExitStack() as stack:
        yield lambda nodes: stack.enter_context(rack_of(tmp_path, nodes))


def settled(rack: Rack, epochs: int = 1) -> Rack:
    """Start the daemons and a life of the group, and let so many epochs settle."""
    rack.start()
    rack.attach()
    rack.settle(epochs)
    return rack


def lines(node: Node, event: str) -> list[dict[str, object]]:
    return [line for line in node.served.lines if line["event"] == event]


# --- one group over all of them -----------------------------------------------------------------


def test_one_group_over_three_nodes_is_balanced(rent: Rent) -> None:
    rack = settled(rent(3), epochs=2)
    leader, *relays = rack.nodes
    gathered = leader.served.line("group gathered")
    assert (gathered["ranks"], gathered["nodes"]) == (6, 3)
    assert all(line["outcome"] == "settled" for line in lines(leader, "epoch ended"))
    for relay in relays:
        assert relay.served.line("group relayed")["leader"] == leader.endpoint
        assert relay.served.line("uplink stands")["node"] == leader.name
        assert not lines(relay, "epoch ended"), "a relay has no part in it"
    said = [line for node in rack.nodes for line in node.served.lines]
    # A slow machine is not their fault, nor what this policy proposes once nothing is left to gain.
    spared = {"slow step", "cycle ended"}
    warned = [line for line in said if line["level"] != "info" and line["event"] not in spared]
    assert not warned


def test_a_leader_by_configuration_needs_no_store(rent: Rent) -> None:
    rack = rent(2)
    leader, relay = rack.nodes
    leader.start()
    relay.start(cluster__leader=leader.endpoint, cluster__leader_key=leader.key)
    rack.attach()
    for worker in rack.behind(1):
        worker.store = {}
    rack.settle()


def test_who_is_killed_comes_back_and_costs_freshness_alone(rent: Rent) -> None:
    rack = settled(rent(2))
    leader, relay = rack.nodes
    for term, killed in ((1, relay), (2, leader)):
        digest = rack.workers[0].agent.placement.digest
        killed.stop()
        rack.until_connected(1, whether=False)
        assert {worker.agent.placement.digest for worker in rack.workers} == {digest}
        killed.start()
        rack.settle()
        assert leader.served.line("group ready")["term"] == term
    relay.served.line("leader lost")
    assert len(lines(relay, "leader found")) == 2


def test_a_leader_may_come_back_with_another_key(rent: Rent) -> None:
    """Rank 0 tells the others through the store; the relay has to know the new key beforehand."""
    rack = settled(rent(2))
    leader, relay = rack.nodes
    leader.stop()
    (leader.folder / "keys").rename(leader.folder / "old-keys")
    leader.key = generate(leader.folder / "keys").public.decode()
    relay.believe(leader)
    relay.reload()
    assert relay.served.line("trust reloaded")["added"] == ["node-0"]
    leader.start()
    rack.settle()
    assert relay.served.line("leader moved")["leader"] == leader.endpoint


# --- trust --------------------------------------------------------------------------------------


def test_an_unknown_node_is_refused_until_its_key_is_there(rent: Rent, tmp_path: Path) -> None:
    rack = rent(2)
    leader, relay = rack.nodes
    leader.doubt(relay)
    leader.believe(Node(tmp_path, "third"))
    rack.start()
    rack.attach()
    rack.drive(lambda: "uplink lost" in relay.served.events(), "the relay is told why")
    assert "does not trust this node" in relay.served.line("uplink lost")["reason"]
    refused = leader.served.line("node refused")
    assert (refused["reason"], refused["key"]) == ("unknown key", relay.key)
    assert not any(worker.agent.connected for worker in rack.workers)
    leader.believe(relay)
    leader.reload()
    rack.settle()
    assert len(lines(leader, "node refused")) == 1, "it came several times, and was told of once"


def test_a_key_that_is_withdrawn_is_cut_off_in_mid_life(rent: Rent) -> None:
    """Whatever else is wrong with the configuration that is read again."""
    rack = settled(rent(2))
    leader, gone = rack.nodes
    leader.doubt(gone)
    leader.configure(balance__nothing=1)
    leader.reload()
    leader.served.line("configuration not reloaded")
    assert leader.served.line("trust reloaded")["withdrawn"] == [gone.name]
    rack.until_connected(1, whether=False)
    assert "does not trust this node" in gone.served.line("uplink lost")["reason"]
    leader.believe(gone)
    leader.configure()
    leader.reload()
    rack.settle()


def test_the_store_is_not_trusted(rent: Rent) -> None:
    """Whoever writes into it names a leader; who vouches for that one is the operator."""
    rack = rent(2)
    impostor = zmq.curve_keypair()[0].decode()
    rack.start()
    rack.attach()
    relay = rack.nodes[1]
    for worker in rack.behind(1):
        worker.store = {"leader": (rack.nodes[0].endpoint, impostor)}
    rack.drive(lambda: "leader refused" in relay.served.events(), "the relay refused it")
    assert relay.served.line("leader refused")["key"] == impostor
    assert "uplink stands" not in relay.served.events()
    for worker in rack.behind(1):
        worker.store = rack.workers[0].store
    rack.settle()


def test_a_trusted_node_that_speaks_nonsense_disturbs_nobody(rent: Rent, tmp_path: Path) -> None:
    rack = rent(2)
    leader, _ = rack.nodes
    third = Node(tmp_path, "third")
    leader.believe(third)
    settled(rack)
    pair = read_pair(third.folder / "keys/node.key_secret")
    old = msgspec.msgpack.encode({"wire": 0})
    with knocking(Address(leader.endpoint, leader.key), pair) as knocker:
        knocker.setsockopt(zmq.SNDTIMEO, 30_000)
        for frames in ([old], [b"\xc1"], [b"", b""], [old], [b"\xc1"]):
            knocker.send_multipart(frames)
        wait_until(lambda: len(lines(leader, "bundle refused")) == 2, leader.served.story)
        rack.settle(2)
    told = {line["reason"]: line for line in lines(leader, "bundle refused")}
    assert set(told) == {"wire version", "garbled"}, "each of them once"
    assert "upgrade the other daemon" in str(told["wire version"]["detail"])
    assert all(line["node"] == "third" for line in told.values())


# --- start and stop -----------------------------------------------------------------------------


def test_a_stop_is_clean(rent: Rent) -> None:
    rack = settled(rent(2))
    for node in reversed(rack.nodes):
        node.served.popen.send_signal(signal.SIGTERM)
        rack.drive(lambda: node.served.popen.poll() is not None, "it ended")  # noqa: B023 - at once
        assert node.served.wait() == 0
        assert not node.served.noise


@pytest.mark.parametrize("wrong", ["key", "mode", "trust", "secret", "address", "tcp"])
def test_what_is_not_safe_is_refused_at_the_start(tmp_path: Path, wrong: str) -> None:
    node, other = Node(tmp_path, "node"), Node(tmp_path, "other")
    keys: dict[str, object] = {}
    if wrong != "trust":
        node.believe(other)
    match wrong:
        case "key":
            (node.folder / "keys/node.key_secret").unlink()
            words = "there is no"
        case "mode":
            (node.folder / "keys/node.key_secret").chmod(0o644)
            words = "chmod 600"
        case "trust":
            words = "holds no key of another node"
        case "secret":
            (other.folder / "keys/node.key_secret").rename(node.trust / "other.key")
            words = "only public ones belong here"
        case "address":
            keys["cluster__listen"] = "tcp://192.0.2.1:9477"
            words = "cluster.listen: cannot bind"
        case _:
            keys["daemon__socket"] = free_endpoint()
            words = "reached through [cluster]"
    config = node.configure(**keys)
    with daemon(config) as served:
        assert served.wait() != 0
        wait_until(lambda: words in served.story(), served.story)
        assert "Traceback" not in served.story()
        assert not any(said.startswith("READY") for said in served.words)
    if wrong != "address":  # which only a daemon tries
        checked = CliRunner().invoke(main, ["check", "--config", str(config)])
        assert checked.exit_code == 1
        assert words in checked.output


def test_check_shows_the_keys(tmp_path: Path) -> None:
    node, other = Node(tmp_path, "node"), Node(tmp_path, "other")
    node.believe(other)
    node.believe(node)
    checked = CliRunner().invoke(main, ["check", "--config", str(node.configure())])
    assert checked.exit_code == 0, checked.output
    assert f"reach this one at {node.endpoint}, public key {node.key}" in checked.output
    assert f"trusted: other, public key {other.key}\n" in checked.output
    assert f"trusted: node, public key {node.key}, this node itself" in checked.output
    secret = read_pair(node.folder / "keys/node.key_secret").secret.decode()
    assert secret not in checked.output


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, False),
        ({"balance__rollout": "one-at-a-time"}, True),
        ({"balance__share_heat": ["*"]}, True),
    ],
    ids=["neither", "rollout", "share_heat"],
)
def test_check_says_what_ends_at_the_node(
    tmp_path: Path, keys: dict[str, object], *, said: bool
) -> None:
    node, other = Node(tmp_path, "node"), Node(tmp_path, "other")
    node.believe(other)
    checked = CliRunner().invoke(main, ["check", "--config", str(node.configure(**keys))])
    assert checked.exit_code == 0, checked.output
    assert ("replicas led on other nodes" in checked.output) is said


def test_a_node_alone_says_nothing_of_others(tmp_path: Path) -> None:
    checked = CliRunner().invoke(main, ["check", "--config", str(write_config(tmp_path))])
    assert checked.exit_code == 0, checked.output
    assert "trusted" not in checked.output
