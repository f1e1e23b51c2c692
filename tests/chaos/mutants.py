"""Break eplbd on purpose, and see whether real processes notice: `python -m tests.chaos.mutants`.

Each mutant is an edit of the sources; each is tried on the one or two scenarios that are there for
it, so a survivor says which scenario proves nothing. One after the other, since time is part of
what is judged: a quarter of an hour. Run by hand and at night; `make test` runs the scenarios and
leaves this out. Name parts of mutants' names to try those alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 400
"""A scenario fails by itself long before: every wait has a deadline."""

LIFE, KILL = "test_life.py", "test_kill.py"
TRANSFERS, REPLICATED = "test_transfers.py", "test_dispatch_replicated.py"
ANY_EPOCH = f"{LIFE}::test_reloaded_in_an_epoch"

Edit = tuple[str, str, str]
"""File, what stands exactly once in it, and what is put in its place."""

HOOK, STAGER, THREAD, P2P = (
    f"eplbd/worker/{name}.py" for name in ("hook", "stager", "agent", "torch_p2p")
)
AGENT, GROUP, NODE = (f"eplbd/core/{name}.py" for name in ("agent", "group", "node"))

WAITS = """\
        arm = self._arm
        machine = self._tell.__self__.machine
        while machine.term and not machine.connected:
            threading.Event().wait(0.01)
        if arm is not None and forward"""


@dataclass(frozen=True)
class Mutant:
    """Edits, and the scenarios that must notice."""

    name: str
    edits: tuple[Edit, ...]
    scenarios: tuple[str, ...]

    def apply(self, root: Path) -> None:
        """Edit the sources under `root`."""
        for file, old, new in self.edits:
            path = root / file
            source = path.read_text()
            if source.count(old) != 1:
                raise SystemExit(f"mutant {self.name!r} does not apply to {file}")
            path.write_text(source.replace(old, new))


MUTANTS = (
    Mutant(
        "agent: near the armed forward, commit without asking the register",
        (
            (
                AGENT,
                "                self._ask(Gate.FLIP)\n            case Standing.CONFIRMED, e.Fl",
                "                self._confirmed()\n            case Standing.CONFIRMED, e.Fl",
            ),
        ),
        (f"{REPLICATED}::test_killed[one was told to arm]",),
    ),
    Mutant(
        "agent: prepared and alone, walk away from the promise to stage",
        (
            (
                AGENT,
                "            case Standing.PREPARED:\n                self._ask(Gate.STAGE)\n",
                "            case Standing.PREPARED:\n                return self._drop()\n",
            ),
        ),
        (f"{KILL}::test_killed_and_gone_for_a_while[one was told to stage]",),
    ),
    Mutant(
        "agent thread: die and leave an arm undecided",
        (
            (
                THREAD,
                "        while arm is not None and arm.verdict is None:",
                "        while False:",
            ),
        ),
        (f"{REPLICATED}::test_an_agent_dies_while_it_is_armed",),
    ),
    Mutant(
        "hook: flip one forward late on rank 1",
        (
            (
                HOOK,
                "        if forward < arm.at:",
                '        if forward < arm.at + (__import__("os").environ["RANK"] == "1"):',
            ),
        ),
        (ANY_EPOCH,),
    ),
    Mutant(
        "hook: let nobody know that the armed forward nears",
        ((HOOK, "            self._tell(Neared(arm.term, arm.epoch, arm.attempt))\n", ""),),
        (f"{KILL}::test_killed_and_gone_for_a_while[all are armed]",),
    ),
    Mutant(
        "hook: forget the next attempt's arm with the last one's",
        ((HOOK, "        arm.passed = True\n", "        self._arm = None\n"),),
        (f"{TRANSFERS}::test_the_register_is_slow_for_one_rank",),
    ),
    Mutant(
        "hook: wait for the daemon before each forward",
        (
            (
                HOOK,
                "        arm = self._arm\n        if arm is not None and forward",
                WAITS,
            ),
        ),
        (f"{LIFE}::test_a_daemon_comes_late",),
    ),
    Mutant(
        "stager: leave the remaining rounds after one that failed",
        (
            (
                STAGER,
                "                failed = failed or outcome\n",
                "                failed = failed or outcome\n                if failed: break\n",
            ),
        ),
        (f"{TRANSFERS}::test_a_round_fails_on_one_rank",),
    ),
    Mutant(
        "executor: take bytes that were not verified",
        ((P2P, "            if any(verdict):\n", "            if not verdict:\n"),),
        (f"{TRANSFERS}::test_a_byte_flips_in_a_staging_buffer",),
    ),
    Mutant(
        "executor: leave one tensor of a commit behind",
        ((P2P, "for slot, staged in pairs:", "for slot, staged in pairs[:-1]:"),),
        (ANY_EPOCH,),
    ),
    Mutant(
        "group: keep a lane that broke",
        ((GROUP, "            self.lane += 1\n", "            pass\n"),),
        (f"{TRANSFERS}::test_a_transfer_breaks_its_lane",),
    ),
    Mutant(
        "group: believe the stored term rather than the ranks",
        ((GROUP, "max(self.stored_term, self.term, highest) + 1", "self.stored_term + 1"),),
        (f"{KILL}::test_an_older_copy_of_the_state_comes_back",),
    ),
    Mutant(
        "node: lead a new life of the group under an old term",
        ((NODE, "old.group.term if old else 0)", "0)"),),
        (f"{LIFE}::test_a_group_is_killed_and_comes_back",),
    ),
    Mutant(
        "daemon: bind a socket that another one serves",
        (
            (
                "eplbd/runtime/claim.py",
                "            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
                "            pass\n",
            ),
            ("eplbd/runtime/endpoint.py", "        _refuse_what_is_not_ours(path, key)\n", ""),
        ),
        (f"{LIFE}::test_a_second_daemon_is_refused[True]",),
    ),
    Mutant(
        "daemon: end where a record cannot be written",
        (
            (
                "eplbd/runtime/keeper.py",
                "        except OSError as error:\n            self._refused(PersistFailed",
                "        except KeyError as error:\n            self._refused(PersistFailed",
            ),
        ),
        (f"{LIFE}::test_the_disk_is_full",),
    ),
    Mutant(
        "daemon: end where a frame cannot be decoded",
        (
            (
                "eplbd/runtime/daemon.py",
                "        except RemoteProtocolError as error:\n            return e.Garbled",
                "        except KeyError as error:\n            return e.Garbled",
            ),
        ),
        ("test_hostile.py::test_frames_that_are_no_messages",),
    ),
    Mutant(
        "policy host: wait for an answer without a deadline",
        (
            (
                "eplbd/runtime/policyhost.py",
                "            with anyio.move_on_after(deadline_s):\n",
                "            with anyio.move_on_after(None):\n",
            ),
        ),
        ("test_policies.py::test_a_policy_fails_three_times_and_is_suspended[spins]",),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What the scenarios said."""

    killed: bool
    by: str
    seconds: float


def run(mutant: Mutant | None, scenarios: Sequence[str]) -> Outcome:
    """Play scenarios on a copy of the sources, edited or not."""
    with tempfile.TemporaryDirectory(prefix="eplbd-chaos-") as folder:
        copy = Path(folder)
        for name in ("eplbd", "tests", "policies"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored)
        shutil.copy(REPOSITORY / "pyproject.toml", copy)
        if mutant is not None:
            mutant.apply(copy)
        began = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        nodes = [f"tests/chaos/{scenario}" for scenario in scenarios]
        try:
            done = subprocess.run(
                [*command, *nodes],
                cwd=copy,
                env=os.environ | {"PYTHONPATH": str(copy)},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(False, f"no end within {TIMEOUT_S} s", TIMEOUT_S)
        by = _reason(done.stdout + done.stderr)
        return Outcome(done.returncode == 1, by, time.monotonic() - began)


def _reason(output: str) -> str:
    """Return the first line that says what failed."""
    failed = re.findall(r"^E\s+(?:[\w.]*\.)?((?:\w*Error\b|assert )[^\n]*)", output, re.MULTILINE)
    passed = re.findall(r"^(\d+ passed.*)$", output, re.MULTILINE)
    first: str = (failed or passed or [output[-80:]])[0]
    return first.removeprefix("AssertionError: ")[:90].replace("|", "/").replace("\n", " ")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Print the table; fail if a mutant survives or the unedited sources do not pass."""
    wanted = sys.argv[1:] or [""]
    chosen = [mutant for mutant in MUTANTS if any(part in mutant.name for part in wanted)]
    every = sorted({scenario for mutant in chosen for scenario in mutant.scenarios})
    control = run(None, every)
    _say(f"unedited: {control.by}, {control.seconds:.0f} s\n")
    _say("| mutant | noticed by | s |\n| --- | --- | --- |")
    survivors = 0
    for mutant in chosen:
        outcome = run(mutant, mutant.scenarios)
        survivors += not outcome.killed
        verdict = outcome.by if outcome.killed else f"**SURVIVES** ({outcome.by})"
        _say(f"| {mutant.name} | {verdict} | {outcome.seconds:.0f} |")
    _say(f"\n{len(chosen) - survivors} of {len(chosen)} mutants noticed")
    return int(survivors > 0 or control.killed or "passed" not in control.by)


if __name__ == "__main__":
    sys.exit(main())
