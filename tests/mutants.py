"""Break the protocol on purpose, and see whether its tests notice: `python -m tests.mutants`.

Each mutant is one edit of one machine. The suite that must notice is `tests/core/test_protocol.py`
alone, or across nodes `tests/core/test_nodes.py`: they know no message by name, only that ranks
must agree, contents be right, nobody be left waiting, and balancing resume. What a relay must not
let happen although no rank would suffer from it at once, its own tests must notice, and so must
those of doors and keys what is let in. A mutant that survives means that its suite proves nothing
about the rule it broke.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.runtime.mutants import TRUST

REPOSITORY = Path(__file__).resolve().parent.parent
SUITE = "tests/core/test_protocol.py"
NODES = "tests/core/test_nodes.py"
RELAYS = "tests/core/test_relays.py"
TIMEOUT_S = 600
"""The suite takes half a minute of one core; a mutant that runs in circles is noticed by this."""


@dataclass(frozen=True)
class Mutant:
    """One edit: `old` stands exactly once in `file`."""

    name: str
    file: str
    old: str
    new: str
    suite: str = SUITE

    def apply(self, root: Path) -> None:
        """Edit the sources under `root`."""
        path = root / self.file
        source = path.read_text()
        if source.count(self.old) != 1:
            raise SystemExit(f"mutant {self.name!r} does not apply to {self.file}")
        path.write_text(source.replace(self.old, self.new))


LEADER, AGENT, GROUP, NODE, RELAY, RELAYED, CONTACT = (
    f"eplbd/core/{name}.py"
    for name in ("leader", "agent", "group", "node", "relay", "relays", "contact")
)

MUTANTS = (
    Mutant(
        "leader: go on one acknowledgement early",
        LEADER,
        "        if self.waiting:\n            return\n        match",
        "        if len(self.waiting) > 1:\n            return\n        match",
    ),
    Mutant(
        "leader: accept answers of a stale epoch",
        LEADER,
        "(message.term, message.epoch) != (self.term, self.epoch)",
        "message.term != self.term",
    ),
    Mutant(
        "leader: commit without the register",
        LEADER,
        "                self._enter(Phase.DECIDE)\n",
        "                self._enter(Phase.COMMIT)\n",
    ),
    Mutant(
        "leader: stage without the register",
        LEADER,
        "                self._enter(Phase.OPEN)\n",
        "                self._enter(Phase.STAGE)\n",
    ),
    Mutant(
        "leader: decide when the first rank is armed",
        LEADER,
        "                self._acknowledged(rank, Phase.ARM if attempt == self.attempt "
        "else None)\n",
        "                if self.phase is Phase.ARM and attempt == self.attempt:\n"
        "                    self._enter(Phase.DECIDE)\n",
    ),
    Mutant(
        "leader: give up a decision without writing abort",
        LEADER,
        '                self.reason = "the register did not answer"\n'
        "                self._revoke()",
        '                self.reason = "the register did not answer"\n'
        "                self._next_attempt()",
    ),
    Mutant(
        "leader: give up an opened epoch without writing abort",
        LEADER,
        "                self.proposal = Verdict.ABORT\n                self._ask()",
        "                self._enter(Phase.CLOSE)",
    ),
    Mutant(
        "leader: take an abort in the register for a commit",
        LEADER,
        "                if commit:\n                    self._enter(Phase.COMMIT)\n"
        "                else:\n                    self._next_attempt()",
        "                self._enter(Phase.COMMIT)",
    ),
    Mutant(
        "leader: never send anything twice",
        LEADER,
        "            self._say_to(self.waiting)\n\n    # --- entering",
        "            pass\n\n    # --- entering",
    ),
    Mutant(
        "group: forget the term, claim the same again",
        GROUP,
        "max(self.stored_term, self.term, highest) + 1",
        "max(1, highest)",
    ),
    Mutant(
        "group: number an aborted epoch's successor alike",
        GROUP,
        "        self.issued = prepares[0].epoch\n",
        "        self.issued = prepares[0].epoch - 1\n",
    ),
    Mutant(
        "group: take over before all ranks stand idle",
        GROUP,
        "or any(s.standing is not Standing.IDLE for s in stands)",
        "or False",
    ),
    Mutant(
        "group: do not tell a returning rank that its epoch is over",
        GROUP,
        '            self.send(rank, m.Abort(self.term, message.pending, "the epoch is over"))\n',
        "            pass\n",
    ),
    Mutant(
        "agent: obey any term",
        AGENT,
        "            case _ if message.term != self.term:\n                self.stale += 1\n",
        "",
    ),
    Mutant(
        "agent: take on an epoch again that it dropped",
        AGENT,
        " or (message.term, message.epoch) <= self.begun:",
        ":",
    ),
    Mutant(
        "agent: keep to itself what is in the way",
        AGENT,
        "            self.out.append(e.Stand())  # the leader may",
        "            pass  # the leader may",
    ),
    Mutant(
        "agent: say prepared before the buffers are there",
        AGENT,
        "        self.out.append(e.Reserve(message))\n",
        "        self.out.append(e.Reserve(message))\n"
        "        self._reply(m.Prepared(self.term, message.epoch))\n"
        "        self.standing = Standing.PREPARED\n",
    ),
    Mutant(
        "agent: route to a slot whose bytes were not verified",
        AGENT,
        "            self.standing = Standing.FAILED\n"
        "            self._nack(event.epoch, event.reason, lane_broken=event.lane_broken)\n",
        "            self.standing = Standing.STAGED\n"
        "            self._reply(m.Staged(self.term, event.epoch))\n",
    ),
    Mutant(
        "agent: walk away from a promise to stage",
        AGENT,
        "            case Standing.PREPARED:\n                self._ask(Gate.STAGE)\n",
        "            case Standing.PREPARED:\n                self._drop()\n"
        "                return\n",
    ),
    Mutant(
        "agent: walk away from rounds under way",
        AGENT,
        "            case Standing.PREPARING | Standing.STAGING:\n"
        "                self.doomed = True\n            case Standing.PREPARED |",
        "            case Standing.PREPARING:\n                self.doomed = True\n"
        "            case Standing.STAGING | Standing.PREPARED |",
    ),
    Mutant(
        "agent: abort an armed flip without the register",
        AGENT,
        "                self._ask(Gate.FLIP)\n            case Standing.CONFIRMED, e.Flipped():",
        "                self._disarm()\n            case Standing.CONFIRMED, e.Flipped():",
    ),
    Mutant(
        "agent: commit an armed flip without the register",
        AGENT,
        "                self._ask(Gate.FLIP)\n            case Standing.CONFIRMED, e.Flipped():",
        "                self._confirmed()\n            case Standing.CONFIRMED, e.Flipped():",
    ),
    Mutant(
        "agent: let an older attempt replace a newer one",
        AGENT,
        "            case Standing.ARMED if message.attempt > self.attempt:\n",
        "            case Standing.ARMED if message.attempt != self.attempt:\n",
    ),
    Mutant(
        "agent: take the register's answer to another attempt",
        AGENT,
        "            case Gate.FLIP, Standing.ARMED if attempt == self.attempt:\n",
        "            case Gate.FLIP, Standing.ARMED:\n",
    ),
    Mutant(
        "agent: release the staging buffers before the flip",
        AGENT,
        "        self.standing = Standing.CONFIRMED\n",
        "        self.standing = Standing.CONFIRMED\n"
        "        self.out.append(e.Discard(self.term, self.pending))\n",
    ),
    Mutant(
        "relay: hand orders to any rank of the node",
        RELAY,
        "        peer = self.peers.get(rank)\n",
        "        peer = next(iter(self.peers.values()), None)\n",
        NODES,
    ),
    Mutant(
        "relay: wait for the leader before passing anything on",
        RELAY,
        "        self._forward(hello.rank, seq, hello)\n",
        "        if self.linked:\n            self._forward(hello.rank, seq, hello)\n",
        NODES,
    ),
    Mutant(
        "relay: book every rank's heat as that of the first",
        "eplbd/core/report.py",
        "        ranks=np.array(ranks, dtype=np.int32),\n        counts=counts,\n",
        "        ranks=np.arange(len(ranks), dtype=np.int32),\n        counts=counts,\n",
        NODES,
    ),
    Mutant(
        "relay: stay with a leader that moved",
        RELAYED,
        "            relay.follow(leader)\n",
        "            pass\n",
        NODES,
    ),
    Mutant(
        "relay: keep the ranks of a life that is over",
        RELAYED,
        "if relay is None or hello.incarnation > relay.incarnation:",
        "if relay is None:",
        RELAYS,
    ),
    Mutant(
        "relay: forget which rank a peer is",
        NODE,
        "        self.members[peer] = (hello.group, hello.rank)\n        self.forget(self",
        "        self.forget(self",
        RELAYS,
    ),
    Mutant(
        "leader: tell nobody where it is reached",
        NODE,
        "self.out.append(Send(peer, m.Door(self.cluster.endpoint, self.cluster.key)))",
        "pass",
        NODES,
    ),
    Mutant(
        "agent: look for the leader once and never again",
        CONTACT,
        "self._next_seek = self._now + SEEK_S",
        'self._next_seek = float("inf")',
        NODES,
    ),
    Mutant(
        "leader: let a rank that lives be taken over another way",
        GROUP,
        "relay_of(held.peer) == relay_of(peer)",
        "True",
        RELAYS,
    ),
    Mutant(
        "leader: let a relay speak for another's ranks",
        NODE,
        "any(Via(relay, name, rank) not in self.members for rank in ranks)",
        "any(rank not in balancer.group.sessions for rank in ranks)",
        RELAYS,
    ),
    Mutant(
        "relay: obey whoever says that it leads",
        RELAYED,
        "if relay.leader == event.leader}",
        "}",
        RELAYS,
    ),
    Mutant(
        "relay: be led away from the node that has rank 0",
        RELAYED,
        " or _has_rank_0(led, hello.incarnation):",
        ":",
        RELAYS,
    ),
    Mutant(
        "relay: pass on what another relay passed on",
        NODE,
        "        elif hello.group in self.relays.groups:\n",
        "        elif False:\n",
        RELAYS,
    ),
    *(Mutant(*row) for row in TRUST),
)


@dataclass(frozen=True)
class Outcome:
    """What the suite said of a mutant."""

    mutant: Mutant | None
    killed: bool
    by: str
    seconds: float


def run(mutant: Mutant | None) -> Outcome:
    """Run its suite on a copy of the sources with one edit, or all with none as the control."""
    suites = sorted({each.suite for each in MUTANTS}) if mutant is None else [mutant.suite]
    with tempfile.TemporaryDirectory(prefix="eplbd-mutant-") as folder:
        copy = Path(folder)
        for name in ("eplbd", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored)
        shutil.copy(REPOSITORY / "pyproject.toml", copy)
        if mutant is not None:
            mutant.apply(copy)
        began = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *suites]
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                env=os.environ | {"PYTHONPATH": str(copy)},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(mutant, True, "it runs in circles", TIMEOUT_S)
        by = _reason(done.stdout + done.stderr)
        return Outcome(mutant, done.returncode == 1, by, time.monotonic() - began)


def _reason(output: str) -> str:
    """Return the first line that says what failed."""
    errors = re.findall(r"^E\s+(?:[\w.]*\.)?(\w*(?:Error|Failed)\b[^\n]*)", output, re.MULTILINE)
    passed = re.findall(r"^(\d+ passed.*)$", output, re.MULTILINE)
    first: str = (errors or passed or [output[-80:]])[0]
    return first[:64].replace("|", "/").replace("\n", " ")


def main() -> int:
    """Print the table; fail if a mutant survives or the unedited sources do not pass."""
    control = run(None)  # alone: what fails for want of a core says nothing of the sources
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        outcomes = [*pool.map(run, MUTANTS)]
    print("| mutant | noticed by | s |\n| --- | --- | --- |")
    for outcome in outcomes:
        assert outcome.mutant is not None
        verdict = outcome.by if outcome.killed else f"**SURVIVES** ({outcome.by})"
        print(f"| {outcome.mutant.name} | {verdict} | {outcome.seconds:.0f} |")
    survivors = sum(not outcome.killed for outcome in outcomes)
    print(
        f"\nunedited: {control.by}; {len(outcomes) - survivors} of {len(outcomes)} mutants noticed"
    )
    return int(survivors > 0 or control.killed or "passed" not in control.by)


if __name__ == "__main__":
    sys.exit(main())
