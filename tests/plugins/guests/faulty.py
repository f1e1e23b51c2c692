"""A policy that keeps the placement, and misbehaves as its option says when the heat says so."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

import msgspec
import numpy as np

import eplbd

TRIGGER = 666
"""First count of the window that makes the policy misbehave."""

HELD: list[bytearray] = []


def raises(_current: eplbd.Placement) -> eplbd.Placement:
    raise RuntimeError("the guest is unhappy")


def leaves(_current: eplbd.Placement) -> eplbd.Placement:
    sys.exit(7)


def dies(_current: eplbd.Placement) -> eplbd.Placement:
    os._exit(3)


def spins(_current: eplbd.Placement) -> eplbd.Placement:
    while True:
        pass


def ignores_signals(current: eplbd.Placement) -> eplbd.Placement:
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    return spins(current)


def stops(current: eplbd.Placement) -> eplbd.Placement:
    os.kill(os.getpid(), signal.SIGSTOP)
    return current


def segfaults(current: eplbd.Placement) -> eplbd.Placement:
    ctypes.string_at(0)
    return current


def allocates(current: eplbd.Placement) -> eplbd.Placement:
    np.ones(1 << 40, np.int8)
    return current


def hoards(_current: eplbd.Placement) -> eplbd.Placement:
    while True:
        HELD.append(bytearray(1 << 24))


def leaks(current: eplbd.Placement) -> eplbd.Placement:
    """Into its module, a little with each question: it outlives the policy's instance."""
    HELD.append(bytearray(1 << 26))
    return current


def recurses(current: eplbd.Placement) -> eplbd.Placement:
    return recurses(current)


def forks(current: eplbd.Placement) -> eplbd.Placement:
    """Parent and child come back: one answer may arrive, not two."""
    os.fork()
    return current


def leaves_a_child(_current: eplbd.Placement) -> eplbd.Placement:
    """The child of the fork spins in the same process group, the parent dies."""
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(60)
    sys.stderr.write(f"left behind {pid}\n")
    sys.stderr.flush()
    os._exit(0)


def daemonises(_current: eplbd.Placement) -> eplbd.Placement:
    """The child of the fork leaves the group and keeps the pipes open; it ends by itself soon."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(5)
        os._exit(0)
    os._exit(0)


def prints(current: eplbd.Placement) -> eplbd.Placement:
    sys.stdout.write("printed to standard output\n")
    os.write(1, b"written to descriptor 1\n")
    return current


def floods(current: eplbd.Placement) -> eplbd.Placement:
    for number in range(5000):
        sys.stdout.write(f"line {number}\n")
    sys.stdout.write("x" * 100_000 + "\n")
    return current


def reads_stdin(current: eplbd.Placement) -> eplbd.Placement:
    if sys.stdin.read():
        raise RuntimeError("there was something to read")
    return current


def scribbles(current: eplbd.Placement) -> eplbd.Placement:
    """Finds the protocol's descriptors and writes to them."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\xff" * 64)
        except OSError:
            continue
    return spins(current)


def closes_everything(current: eplbd.Placement) -> eplbd.Placement:
    os.closerange(0, 1024)
    return current


def returns_none(_current: eplbd.Placement) -> None:
    return None


def returns_an_array(current: eplbd.Placement) -> object:
    return current.slots


def returns_the_wrong_shape(current: eplbd.Placement) -> eplbd.Placement:
    return eplbd.Placement(current.slots[:1], current.experts)


def returns_floats(current: eplbd.Placement) -> eplbd.Placement:
    return eplbd.Placement(np.full(current.slots.shape, np.nan), current.experts)


def returns_objects(current: eplbd.Placement) -> eplbd.Placement:
    """Past the constructor's checks."""
    object.__setattr__(current, "slots", current.slots.astype(object))
    return current


def returns_smuggled_floats(current: eplbd.Placement) -> eplbd.Placement:
    object.__setattr__(current, "slots", np.full(current.slots.shape, np.nan))
    return current


def returns_too_much(current: eplbd.Placement) -> eplbd.Placement:
    return eplbd.Placement(np.zeros((4000, 50, 50), np.int32), current.experts)


def writes_to_its_input(current: eplbd.Placement) -> eplbd.Placement:
    current.slots[:] = 0
    return current


def unlocks_its_input(current: eplbd.Placement) -> eplbd.Placement:
    current.slots.setflags(write=True)
    return current


FAULTS: dict[str, Callable[[eplbd.Placement], object]] = {
    fault.__name__: fault
    for fault in (
        raises,
        leaves,
        dies,
        spins,
        ignores_signals,
        stops,
        segfaults,
        allocates,
        hoards,
        leaks,
        recurses,
        forks,
        leaves_a_child,
        daemonises,
        prints,
        floods,
        reads_stdin,
        scribbles,
        closes_everything,
        returns_none,
        returns_an_array,
        returns_the_wrong_shape,
        returns_floats,
        returns_objects,
        returns_smuggled_floats,
        returns_too_much,
        writes_to_its_input,
        unlocks_its_input,
    )
}


class Faulty:
    """Keeps the placement until the heat triggers its fault."""

    name = "faulty"
    eplbd_api = 1

    class Options(msgspec.Struct):
        """One of `FAULTS`."""

        fault: str = "raises"

    def __init__(self, options: Options) -> None:
        self._fault = FAULTS[options.fault]

    def propose(
        self,
        heat: eplbd.Heat,
        topology: eplbd.Topology,
        current: eplbd.Placement,
        budget: eplbd.Budget,
    ) -> eplbd.Placement:
        if heat.steps[0, 0, 0] == TRIGGER:
            return self._fault(current)  # type: ignore[return-value]  # that is the point
        return current


@eplbd.hookimpl
def eplbd_register_policies(register: eplbd.Register) -> None:
    register(Faulty)
