"""What a scenario is played in: a daemon, a group behind a relay, and the promises to hold.

Owns the figures of the set-up and the judgement after each scenario. A scenario that does not end
well leaves nothing behind that another one would stumble over: the next one gets a new laboratory.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import control as c
from tests.chaos.group import Group
from tests.chaos.rules import Moment
from tests.chaos.served import Served
from tests.chaos.waiting import until

TEST_S = 300
"""For a whole test, which may have to build its laboratory first. Everything in it has a deadline
of its own; this one is for a machine that does ten other things."""

RECOVERY_S = 40.0
"""Until balancing has resumed after the worst of it; two to three seconds on an idle machine."""

SLACK_S = 0.2
"""What a forward may lose to other processes beyond what it lost in the baseline. Two cores run the
ranks, the daemon, its policy and the test: a start of the daemon alone is a second of one core."""

LEAST_SILENCE_S = 0.8
ALONE_FORWARDS = 40

ARM_TIMEOUT_S = 1.5

QUICK: dict[str, object] = {
    "log__format": "json",
    "policy__name": "greedy",
    "policy__deadline_s": 5.0,
    "balance__interval_s": 0.1,
    "balance__window_steps": 32,
    "balance__min_steps": 16,
    "balance__par_trigger": 1.0,
    "balance__min_gain": 0.0,
    "balance__horizon_s": 86_400.0,
    "balance__pause_s": 0.05,
    "epoch__margin_forwards": 8,
    "epoch__guard_forwards": 2,
    "epoch__prepare_timeout_s": 3.0,
    "epoch__stage_timeout_s": 6.0,
    "epoch__arm_timeout_s": ARM_TIMEOUT_S,
    "epoch__decide_timeout_s": 1.0,
    "epoch__settle_timeout_s": 2.0,
    "epoch__resend_s": 0.1,
    "transfer__inflation_ceiling": 100.0,
    "session__heartbeat_s": 0.1,
}
"""Everything soon, and every gain worth a move: an epoch or two in each second."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Longest gap between two forwards that a scenario may cause, and where it comes from.

    baseline_s: longest gap without a fault, in this run: forwards alone, the daemon's start, its
    first epochs. register_s: slowest of some answers of the register. A forward that waited for the
    daemon or a deadline would wait for `silence_s` at least, which is twice the bound.
    """

    baseline_s: float
    register_s: float

    def gap_s(self, twin_s: float = 0.0) -> float:
        """Twice the worst of the baseline, a round trip, and slack for busy cores.

        twin_s: longest forward of the twin meanwhile. It is the control: the same forward on the
        same ranks without a hook. Where the machine has become so busy that twin and model alike
        take longer than the baseline's whole step, that is the baseline.
        """
        return 2 * max(self.baseline_s, 2 * twin_s) + self.register_s + SLACK_S

    @property
    def silence_s(self) -> float:
        return max(LEAST_SILENCE_S, 2 * self.gap_s())


@dataclass(frozen=True, slots=True)
class Measured:
    """What a scenario cost the ranks at worst."""

    scenario: str
    gap_s: float
    bound_s: float
    hook_s: float
    epoch: int


class Lab:
    """A daemon and a group. `folder` is its own; dispatch as in `Setting`."""

    def __init__(self, folder: Path, *, ranks: int = 3, dispatch: str = "all-to-all") -> None:
        self._folder, self._ranks, self._dispatch = folder, ranks, dispatch
        self._numbers = itertools.count()
        self.bound = Bound(0.0, 0.0)
        self.measured: list[Measured] = []
        self.sound = False
        self.daemon: Served
        self.group: Group
        self._built = False

    # --- building -------------------------------------------------------------------------------

    def build(self) -> None:
        """Start a group, then a daemon, and measure what a gap is where nothing goes wrong."""
        self.close()
        folder = self._folder / str(next(self._numbers))
        folder.mkdir(parents=True)
        self.daemon = Served(folder)
        self.daemon.configure(**QUICK)
        self._built = True
        self.start_group()
        self.group.ask(c.Forget())
        self.group.ask(c.RoundTrip())
        started = self.group.newest()
        self.group.until(
            lambda now: now[0].forward > started + ALONE_FORWARDS, "forwards without a daemon"
        )
        assert not any(r.connected or r.epoch for r in self.group.reports())
        self.daemon.start()
        self.settles_further(epochs=2)
        reports = self.group.reports()
        self.bound = Bound(max(r.max_gap_s for r in reports), max(r.register_s for r in reports))
        self.configure()
        self.daemon.kill()
        self.daemon.start()
        self.settles_further()
        self.sound = True

    def start_group(self) -> None:
        """Begin a life of the group."""
        folder = self.daemon.folder / f"group{next(self._numbers)}"
        self.group = Group(folder, self.daemon.socket, ranks=self._ranks, dispatch=self._dispatch)
        self.group.start()

    def configure(self, **keys: object) -> None:
        """Write the configuration: the quick one, but for `keys`."""
        self.daemon.configure(**{**QUICK, "session__silence_s": self.bound.silence_s, **keys})

    def close(self) -> None:
        """End every process."""
        if self._built:
            self._built = False
            self.group.kill()
            self.daemon.close()

    # --- scenarios ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def scenario(self, name: str, *, register_s: float = 0.0) -> Iterator[None]:
        """Play what is in the block, then hold everything that was promised against the ranks.

        register_s: by which the scenario makes the register slower.
        """
        if not self.sound:
            self.build()
        self.sound = False
        self.group.ask(c.Forget())
        yield
        self.all_holds(name, register_s)
        self.sound = True

    def all_holds(self, name: str, register_s: float) -> None:
        """Balancing resumes, nobody waited, all are on one map, and no output was wrong."""
        self.settles_further()
        reports = self.group.audit()
        self.one_map(reports)
        assert [r.wrong for r in reports] == [[]] * len(reports), self.group.story(reports)
        self.nobody_waited(name, reports, register_s)

    def nobody_waited(self, name: str, reports: list[c.Report], register_s: float = 0.0) -> None:
        """No forward of any rank came later than the bound allows."""
        gap = max(reports, key=lambda r: r.max_gap_s)
        hook_s = max(r.max_hook_s for r in reports)
        # A rank that is held up holds up the others' twins; the least of them is the machine.
        bound_s = self.bound.gap_s(min(r.max_twin_s for r in reports)) + register_s
        assert gap.max_gap_s <= bound_s, (
            f"{gap.max_gap_s:.3f} s before forward {gap.gap_at} on rank {gap.rank}, "
            f"{hook_s:.3f} s of a forward in the hook; bound {bound_s:.3f} s "
            f"({self.bound})\n{self.group.story(reports)}"
        )
        self.measured.append(Measured(name, gap.max_gap_s, bound_s, hook_s, reports[0].epoch))

    def settles_further(self, epochs: int = 1) -> None:
        """Wait until the daemon, started anew if need be, has settled another epoch everywhere."""
        if not self.daemon.alive:
            self.daemon.start()
        base = max(r.epoch for r in self.group.reports())
        mark = self.daemon.mark()

        def settled() -> bool:
            lines = self.daemon.since(mark, "epoch ended", outcome="settled")
            return any(line["epoch"] >= base + epochs for line in lines)

        until(settled, RECOVERY_S, lambda: f"epoch {base + epochs} settles\n{self.story()}")
        self.group.until(
            lambda now: all(r.epoch >= base + epochs and r.connected for r in now),
            "every rank is on it",
        )

    def one_map(self, reports: list[c.Report]) -> None:
        """All ranks, audited between the same two forwards, came the same way to the same map."""
        story = self.group.story(reports)
        assert {r.forward for r in reports} == {reports[0].forward}, story
        assert [r.flips for r in reports] == [reports[0].flips] * len(reports), story
        for report in reports:
            assert report.map_digest == report.flips[-1].digest, story
            assert report.tables_right, story
            assert report.agent_alive, story
            assert not report.garbled, story
        # The agent hears of a flip a little later than the forward that it happens before.
        self.group.until(
            lambda now: all(
                (r.epoch, r.digest, r.map_digest) == (f.epoch, f.digest, f.digest)
                for r, f in ((r, r.flips[-1]) for r in now)
            ),
            "every agent knows the map in force",
        )

    # --- what scenarios have in common ----------------------------------------------------------

    @contextlib.contextmanager
    def at(self, moment: Moment) -> Iterator[None]:
        """Wait until the moment has come, then run the block; the relay is as before after it."""
        with self.group.proxy.obeying(moment):
            until(moment.came.is_set, RECOVERY_S, lambda: f"the moment comes\n{self.story()}")
            yield
            moment.over = True

    def story(self) -> str:
        """For a test that fails."""
        stand = [] if self.group.dead else self.group.reports()
        return f"{self.group.story(stand)}\n{self.daemon.tail()}"
