"""Breaks of what keeps nodes apart that must not be; `tests.mutants` makes them, one by one.

Each is a name, a file, what stands there once, what to put in its place, and the tests to notice.
"""

from __future__ import annotations

DOOR, CLUSTER, KEYS, REPLAY = (
    f"eplbd/runtime/{name}.py" for name in ("door", "cluster", "keys", "replay")
)
AT_THE_DOOR, AT_THE_ENDS, OF_KEYS, OF_REPLAYS = (
    f"tests/runtime/test_{name}.py" for name in ("door", "cluster", "keys", "replay")
)

TRUST = (
    (
        "door: let everybody in where no authority answers",
        DOOR,
        "router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)",
        "router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 0)",
        AT_THE_DOOR,
    ),
    (
        "door: let a key in that is not trusted",
        DOOR,
        "        return trusted\n",
        "        return True\n",
        AT_THE_DOOR,
    ),
    (
        "door: keep the connections of a key that was withdrawn",
        DOOR,
        "            self._renew.set()\n",
        "",
        AT_THE_DOOR,
    ),
    (
        "door: send to a key that was withdrawn",
        DOOR,
        "            self._routes.clear()\n",
        "",
        AT_THE_DOOR,
    ),
    (
        "door: hand a route over to whoever takes its name",
        DOOR,
        "router.setsockopt(zmq.ROUTER_MANDATORY, 1)",
        "[router.setsockopt(one, 1) for one in (zmq.ROUTER_MANDATORY, zmq.ROUTER_HANDOVER)]",
        AT_THE_DOOR,
    ),
    (
        "relay: dial a leader whose key is not trusted",
        CLUSTER,
        "        if leader.key.encode() not in self._trust:\n            return UNTRUSTED\n",
        "",
        AT_THE_ENDS,
    ),
    (
        "relay: stay with a leader whose key was withdrawn",
        CLUSTER,
        "            self._hang_up(leader)\n        if added",
        "            pass\n        if added",
        AT_THE_ENDS,
    ),
    (
        "relay: dial wherever a worker says",
        CLUSTER,
        "if not tcp_host(leader.endpoint) or is_wildcard(leader.endpoint):",
        "if False:",
        AT_THE_ENDS,
    ),
    (
        "leader: take a bundle twice",
        REPLAY,
        "seq <= heard.seq",
        "seq < heard.seq",
        OF_REPLAYS,
    ),
    (
        "leader: take bundles of a session that ended",
        REPLAY,
        "if session in heard.ended:",
        "if False:",
        OF_REPLAYS,
    ),
    (
        "keys: take a secret that the group may read",
        KEYS,
        "(stat.S_IRWXG | stat.S_IRWXO)",
        "stat.S_IRWXO",
        OF_KEYS,
    ),
    (
        "keys: take a directory that the group may write to",
        KEYS,
        "(stat.S_IWGRP | stat.S_IWOTH)",
        "stat.S_IWOTH",
        OF_KEYS,
    ),
)
