"""The policy child, `python -m eplbd.policyproc MEMORY_BYTES`: one policy, asked through two pipes.

Owns its standard descriptors, its memory cap, loading and warming up the policy, and turning
whatever the policy does into an answer or a fault. Must not know the daemon. It keeps nothing
worth saving: the parent kills it without a word, and it ends when its standard input does.
"""

import contextlib
import ctypes
import faulthandler
import fcntl
import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, LocalProtocolError, PlacementError, PolicyError
from eplbd.hookspecs import CAPABILITIES, Policy
from eplbd.making import OptionError, maker, warmed
from eplbd.plugins import Catalogue, Offer, Plugin, needs_of, selected
from eplbd.wire.policy import (
    FROM_CHILD,
    MAX_ASK_BYTES,
    MAX_TEXT_CHARS,
    TO_CHILD,
    Answer,
    Ask,
    Fault,
    FromChild,
    List,
    Listed,
    Listing,
    Open,
    Ready,
    Refused,
    ToChild,
    enframe,
    unframe,
)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Channel:
    """The two pipes, away from descriptors 0 and 1, where a guest's print would hit them."""

    def __init__(self) -> None:
        self._in = io.FileIO(os.dup(0), "r")
        self._out = io.FileIO(os.dup(1), "w")
        with contextlib.suppress(OSError):  # a larger pipe halves the way of a window of 30 MB
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, 1 << 20)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self._seq = 0

    def receive(self) -> ToChild:
        """The next message. Ends the process where the parent has gone."""
        parser = unframe(MAX_ASK_BYTES)
        need = next(parser)
        while True:
            try:
                need = parser.send(self._exactly(need))
            except StopIteration as end:
                return TO_CHILD.decode(end.value, MAX_ASK_BYTES)[1]

    def send(self, message: FromChild) -> None:
        """Write one message. Raises LocalProtocolError where the codec refuses it."""
        self._seq += 1
        for piece in enframe(FROM_CHILD.encode(message, self._seq, MAX_ASK_BYTES)):
            rest = memoryview(piece)
            while rest:
                rest = rest[self._out.write(rest) :]

    def _exactly(self, count: int) -> memoryview:
        buffer = bytearray(count)
        rest = memoryview(buffer)
        while rest:
            got = self._in.readinto(rest)
            if not got:
                raise SystemExit(0)
            rest = rest[got:]
        return memoryview(buffer).toreadonly()


class Guest:
    """The chosen policy: made, warmed up, asked; made anew after it has raised."""

    def __init__(self, make: Callable[[], Policy], needs: frozenset[str]) -> None:
        """Raises whatever the policy raises while it is made and warmed up."""
        self._make = make
        self._needs = needs
        self._policy = warmed(make, needs)

    def answer(self, ask: Ask) -> Answer | Fault:
        """Ask the policy. Its every way of failing, short of ending the process, is a `Fault`."""
        if "shares" in self._needs and not ask.weighted:
            reason = f"the policy needs `shares`, {CAPABILITIES['shares']}; this one does not"
            return Fault(ask.request, "invalid", 0.0, reason)
        _, ranks, per_rank = ask.current.shape
        current = Placement(ask.current, ask.experts, ask.shares)
        budget = Budget(
            ask.max_moves, ask.max_bytes, ask.deadline_s, ask.expert_bytes, ask.weighted
        )
        topology = Topology(ranks, per_rank, ask.node_of, ask.speed)
        process, started = os.getpid(), time.monotonic()
        try:
            proposal: object = self._policy.propose(
                Heat(ask.heat, ask.phase), topology, current, budget
            )
        except BaseException as error:  # noqa: BLE001  # a guest, supervised: SystemExit included
            duration_s = time.monotonic() - started
            reason, outcome = _traceback(error), _outcome(error)
            del error  # its frames may hold what filled the memory
            self._policy = self._make()
            return Fault(ask.request, outcome, duration_s, reason)
        finally:
            if os.getpid() != process:
                os._exit(0)  # a fork of the policy came back as well; one answer is enough
        duration_s = time.monotonic() - started
        if not isinstance(proposal, Placement):
            reason = f"propose() returned {type(proposal).__name__}, expected eplbd.Placement"
            return Fault(ask.request, "invalid", duration_s, reason)
        return Answer(ask.request, duration_s, proposal.slots, proposal.shares)


def _outcome(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "memory"
    return "invalid" if isinstance(error, PlacementError) else "raised"


def _traceback(error: BaseException) -> str:
    """The traceback's head and tail, within what a message may hold."""
    text = "".join(traceback.format_exception(error, limit=-40))
    half = MAX_TEXT_CHARS // 2 - 10
    return text if len(text) <= 2 * half else f"{text[:half]}\n[...]\n{text[-half:]}"


class _RefusalError(Exception):
    """The child cannot serve. `path` is the setting at fault; empty where the plugin is."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path


@contextlib.contextmanager
def _blaming(path: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise _RefusalError(path, str(error)) from error
    except PolicyError as error:
        raise _RefusalError("", str(error)) from error


def _choose(wanted: Open) -> tuple[Offer, Guest]:
    """Load and prepare the policy that the parent named. Raises _RefusalError."""
    with _blaming("plugins.enabled"):
        plugins = selected(wanted.enabled, wanted.modules)
    with _blaming(wanted.name_key):
        offer = Catalogue(plugins).find(wanted.policy)
    try:
        make = maker(offer, wanted.options, where=wanted.options_key)
    except OptionError as error:
        path = f"{wanted.options_key}.{error.option}" if error.option else wanted.name_key
        raise _RefusalError(path, str(error)) from None
    try:
        guest = Guest(make, needs_of(offer.policy))
    except (Exception, SystemExit) as error:
        trace = _traceback(error)
        reason = f"policy `{offer.name}` of {offer.plugin} cannot start\n{trace}"
        raise _RefusalError("", reason) from error
    return offer, guest


def _listing(wanted: List) -> Listing:
    with _blaming("plugins.enabled"):
        catalogue = Catalogue(selected(wanted.enabled, wanted.modules))
    # Named beforehand: a plugin that takes this process down cannot be named afterwards.
    catalogue.load_all(lambda plugin: sys.stderr.write(f"loading {plugin}\n"))
    rows = [
        Listed(
            policy=offer.name,
            needs=" ".join(sorted(needs_of(offer.policy))),
            api=str(offer.policy.eplbd_api),
            **_provenance(offer.plugin),
        )
        for offer in catalogue.offers.values()
    ]
    rows += [Listed(**_provenance(item.plugin), error=item.error) for item in catalogue.broken]
    return Listing(tuple(rows))


def _provenance(plugin: Plugin) -> dict[str, str]:
    return {"plugin": plugin.name, "distribution": plugin.distribution, "version": plugin.version}


def _confine(memory_bytes: int) -> None:
    """Cap memory for good, leave no core behind, die with the parent, tell where a crash was."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A parent that dies before this line is noticed at the first read.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.enable()


def _serve(channel: Channel) -> None:
    started = time.monotonic()
    wanted = channel.receive()
    try:
        if isinstance(wanted, List):
            channel.send(_listing(wanted))
            return
        if not isinstance(wanted, Open):
            raise LocalProtocolError(f"expected Open or List first, got {type(wanted).__name__}")
        offer, guest = _choose(wanted)
    except _RefusalError as refusal:
        channel.send(Refused(refusal.path, str(refusal)))
        return
    plugin = offer.plugin
    start_s = time.monotonic() - started
    channel.send(Ready(offer.name, plugin.distribution, plugin.version, start_s))
    while isinstance(ask := channel.receive(), Ask):
        answer = guest.answer(ask)
        try:
            channel.send(answer)
        except LocalProtocolError as error:  # an array that may not travel
            channel.send(Fault(ask.request, "invalid", 0.0, str(error)))
    raise LocalProtocolError(f"expected Ask, got {type(ask).__name__}")


def main() -> None:
    """Serve one parent until it closes the pipe."""
    channel = Channel()
    _confine(int(sys.argv[1]))
    _serve(channel)


if __name__ == "__main__":
    main()
