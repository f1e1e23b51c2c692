"""What is measured of the connections to other nodes.

Owns these metrics, as `measures` owns all others. Figures of one daemon only: what a leader sent
down a relay received, and both say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from eplbd.runtime import readings as r
from eplbd.runtime.cluster import ClusterStatistics
from eplbd.runtime.measure import Measure
from eplbd.runtime.readings import Sample, Seen


def _ends(name: str, about: str, value: Callable[[ClusterStatistics], float]) -> Measure:
    return Measure(name, (), about, r.one(lambda s: value(s.statistics.cluster)))


def _by(
    label: str, name: str, about: str, value: Callable[[ClusterStatistics], Mapping[str, float]]
) -> Measure:
    return Measure(name, (label,), about, r.named(lambda s: value(s.statistics.cluster)))


def _relayed_ranks(seen: Seen) -> Iterator[Sample]:
    return (((relay.group,), len(relay.ranks)) for relay in seen.overview.relays)


def _relay_linked(seen: Seen) -> Iterator[Sample]:
    return (((relay.group,), relay.linked) for relay in seen.overview.relays)


BETWEEN: tuple[Measure, ...] = (
    _ends(
        "eplbd_trusted_keys",
        "Public keys in the trust directory, as of the last reload; 0 where the node is alone.",
        lambda c: c.trusted,
    ),
    _ends(
        "eplbd_relays_linked",
        "Daemons of other nodes that relay to this one, and to which there is a way.",
        lambda c: c.relays,
    ),
    _ends(
        "eplbd_uplinks",
        "Leaders on other nodes that this daemon dials, whether they answer or not.",
        lambda c: c.uplinks,
    ),
    _ends("eplbd_uplinks_linked", "Those of them that answer.", lambda c: c.linked),
    Measure(
        "eplbd_relay_linked",
        ("group",),
        "Whether the leader of a group that this daemon relays was heard of lately.",
        _relay_linked,
    ),
    Measure(
        "eplbd_relayed_ranks",
        ("group",),
        "Ranks of this node in a group that another node's daemon leads.",
        _relayed_ranks,
    ),
    _by(
        "way",
        "eplbd_bundles_sent_total",
        "Bundles sent to daemons of other nodes: up to a leader, down to a relay.",
        lambda c: c.bundles.sent,
    ),
    _by("way", "eplbd_bundle_sent_bytes_total", "Their size.", lambda c: c.bundles.sent_bytes),
    _by(
        "way",
        "eplbd_bundles_received_total",
        "Bundles that came from daemons of other nodes, refused ones among them.",
        lambda c: c.bundles.received,
    ),
    _by(
        "way",
        "eplbd_bundle_received_bytes_total",
        "Their size.",
        lambda c: c.bundles.received_bytes,
    ),
    _ends(
        "eplbd_relayed_heat_bytes_total",
        "Heat of this node's ranks in the bundles sent up; over `eplbd_relayed_ranks`, what a rank "
        "costs the network.",
        lambda c: c.bundles.heat_bytes,
    ),
    _by(
        "reason",
        "eplbd_bundles_dropped_total",
        "Bundles that were not sent: the other end's queue was full, or it cannot be reached. "
        "Control is said again.",
        lambda c: c.dropped,
    ),
    _by(
        "reason",
        "eplbd_nodes_refused_total",
        "What was refused of other nodes: connections without encryption, with the wrong server "
        "key or an unknown key of their own; bundles that are garbled, repeated or of another wire "
        "version; leaders whose key is not trusted; what is too large to be sent to them; "
        "everybody, once the address to listen on is lost. The log names the first of each.",
        lambda c: c.refused,
    ),
)
