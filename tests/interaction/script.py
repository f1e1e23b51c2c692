"""Commands of the transcripts: a `World` driven by hand, everything that happens written down.

A transcript is prose, then blocks of a command, a line `----` and what must follow. One verb per
method below. Heartbeats and heat are left out of what is written down; everything else is in it.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from eplbd.core import messages as m
from eplbd.core.events import CycleEnded, EpochEnded, Note, Send, Stop, Stopping, Tick
from tests.sim.world import Shape, World

if TYPE_CHECKING:
    from eplbd.core.events import Effect
    from tests.sim.rank import SimRank

QUIET = m.Pulse | m.Beat | m.HeatReport
SHOWN = {"rank", "standing", "pending", "epoch", "rounds", "gate", "attempt", "verdict", "at"}


def brief(message: m.Message) -> str:
    """Return a message as transcripts show it: its name and what distinguishes it."""
    shown = [
        f"{field.name}={getattr(message, field.name)}"
        for field in fields(message)
        if field.name in SHOWN and getattr(message, field.name) not in (0, "", False)
    ]
    if getattr(message, "parts", None) is not None:
        shown.append("parts")
    reason = getattr(message, "reason", "")
    return " ".join([type(message).__name__, *shown, *([f'"{reason}"'] if reason else [])])


class Recorded(World):
    """A world that writes down what is said."""

    trace: list[str]

    def __post_init__(self) -> None:
        """Begin a page."""
        self.trace = []
        super().__post_init__()

    def perform(self, effect: Effect) -> None:
        """Record what the daemon sends and logs."""
        super().perform(effect)
        match effect:
            case Send(bytes() as peer, message) if not isinstance(message, QUIET):
                rank = peer.split(b".")[0].decode()
                self.trace.append(f"leader -> {rank}: {brief(message)}")
            case Stop():
                self.trace.append("the daemon may leave")
            case EpochEnded() | CycleEnded() | Note():
                self.trace.append(_logged(effect))
            case _:
                pass

    def collect(self, rank: int) -> None:
        """Record what a rank says."""
        lost = "" if self.node is not None else " (nobody listens)"
        for message in self.ranks[rank].outbox:
            if not isinstance(message, QUIET):
                self.trace.append(f"{rank} -> leader: {brief(message)}{lost}")
        super().collect(rank)


def _logged(effect: object) -> str:
    match effect:
        case EpochEnded():
            why = f' "{effect.reason}"' if effect.reason else ""
            return f"log: epoch {effect.epoch} {effect.outcome}, attempts {effect.attempts}{why}"
        case CycleEnded():
            return f"log: rebalance {effect.outcome}, {effect.epochs_settled} settled"
        case Note():
            reason = effect.fields.get("reason")
            return f"log: {effect.level}: {effect.event}" + (f' "{reason}"' if reason else "")
        case _:
            return f"log: {effect}"


class Script:
    """Performs the commands of one transcript."""

    def __init__(self) -> None:
        self.world: Recorded | None = None

    def perform(self, command: str) -> str:
        """Run one command line; return what happened, one line each."""
        verb, *words = command.split()
        if verb == "group":
            self._group(words)
        else:
            getattr(self, f"do_{verb.replace('-', '_')}")(*words)
        assert self.world is not None
        for rank in range(len(self.world.ranks)):
            self.world.collect(rank)
        lines = list(self.world.trace)
        self.world.trace.clear()
        return "\n".join(lines) or "nothing"

    def _group(self, words: list[str]) -> None:
        sizes = {name: int(size) for name, size in (word.split("=") for word in words)}
        shape = Shape(sizes["layers"], sizes["experts"], sizes["ranks"], sizes["slots"])
        self.world = Recorded(
            shape=shape, seed=sizes.get("seed", 0), weighted=bool(sizes.get("weighted"))
        )

    @property
    def _here(self) -> Recorded:
        assert self.world is not None, "a transcript begins with `group`"
        return self.world

    def _queue(self, who: str) -> list[tuple[int, bool]]:
        """`all`, `up`, `down`, or `up 1`: rank and direction of the queues meant."""
        ranks = range(len(self._here.ranks))
        ways = {"all": (True, False), "up": (True,), "down": (False,)}[who]
        return [(rank, up) for up in ways for rank in ranks]

    def do_deliver(self, way: str = "all", rank: str = "") -> None:
        """Deliver everything that is on the way now, not what follows from it."""
        world = self._here
        for which, up in self._queue(way):
            if rank and which != int(rank):
                continue
            world.collect(which)
            queue = world.up[which] if up else world.down[which]
            if up and world.node is None:
                continue
            for _ in range(len(queue)):
                (world.deliver_up if up else world.deliver_down)(which)

    def do_drop(self, way: str, rank: str) -> None:
        """Lose the oldest message of a rank."""
        self._here.collect(int(rank))
        self._here.disturb(int(rank), "drop", upward=way == "up")

    def do_repeat(self, way: str, rank: str) -> None:
        """Put the oldest message of a rank on the wire a second time."""
        self._here.collect(int(rank))
        self._here.disturb(int(rank), "repeat", upward=way == "up")

    def do_tick(self, seconds: str) -> None:
        """Let time pass, nothing else."""
        until = self._here.now + float(seconds) - 1e-9
        while self._here.now < until:
            self._here.tick()

    def do_stage(self, *ranks: str) -> None:
        """Let the stagers of these ranks (default: all) work until they are done or wait."""
        world = self._here
        chosen = [int(rank) for rank in ranks] or list(range(len(world.ranks)))
        for _ in range(20):
            for rank in chosen:
                if world.ranks[rank].stager:
                    world.transport.run(rank)

    def do_begin(self) -> None:
        """Let every stager do one thing."""
        for rank, me in enumerate(self._here.ranks):
            if me.stager:
                self._here.transport.run(rank)

    def do_ask(self, *ranks: str) -> None:
        """Let the registrars of these ranks (default: all) ask the register."""
        world = self._here
        for rank in [int(rank) for rank in ranks] or range(len(world.ranks)):
            while world.ranks[rank].questions:
                world.run_registrar(rank)

    def do_forwards(self, count: str, rank: str = "") -> None:
        """Run forwards on all ranks in lockstep, or on one."""
        world = self._here
        for _ in range(int(count)):
            for which in [int(rank)] if rank else range(len(world.ranks)):
                if world.ranks[which].blocked:
                    world.trace.append(f"{which} waits for the register at its armed forward")
                elif world.may_forward(which):
                    world.run_forward(which)

    def do_propose(self) -> None:
        """The policy answers; what comes of it begins with the next tick, at once here."""
        self._here.answer_policy()
        self._here.feed(Tick(self._here.now))

    def do_exchange(self) -> None:
        """Let the leader's orders arrive, the ranks do them, and their answers arrive."""
        self.do_deliver("down")
        self.do_stage()
        self.do_ask()
        self.do_deliver("up")

    def do_flow(self) -> None:
        """Deliver, stage and ask until nothing moves any more; no forward, no time."""
        for _ in range(30):
            self.do_deliver()
            self.do_stage()
            self.do_ask()

    def do_pause(self, seconds: str) -> None:
        """Let time pass while everything but forwards goes on."""
        until = self._here.now + float(seconds) - 1e-9
        while self._here.now < until:
            self._here.tick()
            self.do_exchange()

    def do_gather(self) -> None:
        """Say hello, recover, run forwards until the policy was asked, and let it answer."""
        world = self._here
        self.do_tick("0.05")
        self.do_flow()
        while not world.proposals:
            self.do_forwards("2")
            self.do_flow()
            self.do_tick("0.05")
        self.do_flow()
        world.trace.clear()
        self.do_propose()

    def do_kill(self) -> None:
        """SIGKILL the daemon."""
        self._here.kill_daemon()

    def do_start(self, state: str = "fresh") -> None:
        """Start a daemon, with its own state or with a stale one."""
        self._here.start_daemon(stale=state == "stale")

    def do_stop_daemon(self) -> None:
        """SIGTERM the daemon."""
        self._here.feed(Stopping())

    def do_refuse(self, rank: str, *reason: str) -> None:
        """Make a rank's next reservation fail."""
        self._here.ranks[int(rank)].refuse_next = " ".join(reason)

    def do_corrupt(self, rank: str) -> None:
        """Flip a byte in a staging buffer of a rank."""
        self._here.transport.corrupt(int(rank))

    def do_fail(self, rank: str) -> None:
        """Break a transfer of a rank."""
        self._here.transport.fail(int(rank))

    def do_stand(self) -> None:
        """Write down how everybody stands."""
        world = self._here
        for me in world.ranks:
            world.trace.append(_standing(me))
        if world.node is not None:
            for name, balancer in world.node.balancers.items():
                leader = balancer.group.leader
                phase = f", epoch {leader.epoch} {leader.phase}" if leader else ""
                world.trace.append(f"leader of {name}: {balancer.group.phase}{phase}")


def _standing(me: SimRank) -> str:
    agent = me.agent
    pending = f", epoch {agent.pending} under way" if agent.pending else ""
    return f"{me.rank}: {agent.standing} on epoch {agent.epoch}{pending}, term {agent.term}"
