"""A policy that takes its time and writes down when it began and when it ended."""

import time
from pathlib import Path

import msgspec

import eplbd

WARM_UP_RANKS = 2


class Slow:
    """Proposes what is there, `seconds` later."""

    name = "slow"
    eplbd_api = 1

    class Options(msgspec.Struct):
        """diary: a file for lines of `WHO begins|ends TIME`, by the clock of all processes."""

        who: str
        diary: str
        seconds: float

    def __init__(self, options: Options) -> None:
        self._options = options

    def propose(
        self,
        heat: eplbd.Heat,
        topology: eplbd.Topology,
        current: eplbd.Placement,
        budget: eplbd.Budget,
    ) -> eplbd.Placement:
        if topology.ranks != WARM_UP_RANKS:
            self._note("begins")
            time.sleep(self._options.seconds)
            self._note("ends")
        return current

    def _note(self, what: str) -> None:
        with Path(self._options.diary).open("a", encoding="utf-8") as diary:
            diary.write(f"{self._options.who} {what} {time.monotonic()}\n")


class Slower(Slow):
    """The same under another name, so that both may be shadows."""

    name = "slower"


class Broken:
    """Cannot start."""

    name = "broken"
    eplbd_api = 1

    def __init__(self) -> None:
        raise RuntimeError("out of order")

    propose = Slow.propose


@eplbd.hookimpl
def eplbd_register_policies(register: eplbd.Register) -> None:
    register(Slow)
    register(Slower)
    register(Broken)
