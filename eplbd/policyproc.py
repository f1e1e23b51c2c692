"""The policy child, `python -m eplbd.policyproc MEMORY_BYTES`: one policy, asked through two pipes.

Owns its standard descriptors, its memory cap, loading and warming up the policy, and turning
whatever the policy does into an answer or a fault. Must not know the daemon. It keeps nothing
worth saving: the parent kills it without a word, and it ends when its standard input does.
"""

import contextlib
import ctypes
import faulthandler
import fcntl
import functools
import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, LocalProtocolError, PlacementError, PolicyError
from eplbd.hookspecs import CAPABILITIES, Policy
from eplbd.plugins import Catalogue, Offer, Plugin, needs_of, selected
from eplbd.sources import near
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
        self._make = make
        self._needs = needs
        self._policy = make()

    def warm_up(self) -> None:
        """Propose for a small made-up problem, so that imports and compilation are over with.

        Raises whatever the policy raises.
        """
        heat = np.arange(3 * 2 * 8, dtype=np.int32).reshape(3, 2, 8)
        heat.setflags(write=False)
        current = Placement.linear(2, 8, 2, 5)
        weighted = "shares" in self._needs
        budget = Budget(None, None, deadline_s=30.0, expert_bytes=1, weighted=weighted)
        self._policy.propose(Heat(heat, "all"), Topology.single_node(2, 5), current, budget)
        self._policy = self._make()  # what it may remember of that problem is worth nothing

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
        topology = Topology(ranks, per_rank, ask.node_of)
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


def _options(offer: Offer, wanted: Open) -> object:
    """The policy's options as its own struct, or None where it declares none."""
    declared: type[msgspec.Struct] | None = getattr(offer.policy, "Options", None)
    fields = msgspec.structs.fields(declared) if declared is not None else ()
    known = {option.encode_name: option.type for option in fields}
    for name, value in wanted.options.items():
        path = f"{wanted.options_key}.{name}"
        if name not in known:
            hint = near(name, known) or f"; known: {', '.join(known) or 'none'}"
            raise _RefusalError(path, f"{path}: `{offer.name}` has no such option{hint}")
        try:
            msgspec.convert(value, known[name])
        except msgspec.ValidationError as error:
            raise _RefusalError(path, f"{path}: {error}, got {value!r}") from None
    try:
        return declared and msgspec.convert(wanted.options, declared)
    except msgspec.ValidationError as error:  # one is missing, or the struct's own checks
        reason = f"{wanted.options_key}: `{offer.name}`: {error}"
        raise _RefusalError(wanted.name_key, reason) from None


def _choose(wanted: Open) -> tuple[Offer, Guest]:
    """Load and prepare the policy that the parent named. Raises _RefusalError."""
    with _blaming("plugins.enabled"):
        plugins = selected(wanted.enabled, wanted.modules)
    with _blaming(wanted.name_key):
        offer = Catalogue(plugins).find(wanted.policy)
    options = _options(offer, wanted)
    make: Callable[..., Policy] = offer.policy
    try:
        called = make if options is None else functools.partial(make, options)
        guest = Guest(called, needs_of(offer.policy))
        guest.warm_up()
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
