"""Which lines of eplbd a set of inputs runs: what a fuzzer never reached, it says nothing about.

Counts edges instead: libFuzzer. This is for people, who read lines; it runs the inputs again, under
a trace, and is slow.
"""

from __future__ import annotations

import dis
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import eplbd
from tests.fuzz.targets import target_of

ROOT = Path(eplbd.__file__).parent
SHOWN = {
    "cluster": ("core/contact.py", "core/relay.py", "core/node.py", "wire/bundle.py"),
    "decoders": ("wire/codec.py", "wire/control.py", "wire/policy.py", "wire/stream.py"),
    "session": ("core/node.py", "core/session.py", "core/group.py", "core/ledger.py",
                "core/assembly.py", "core/leader.py", "core/balancer.py", "wire/codec.py"),
}  # fmt: skip
"""The modules that a target is for."""


@dataclass(frozen=True)
class Reached:
    """By module: how many lines of its functions ran, of how many; and those that did not."""

    modules: dict[str, tuple[int, int, list[int]]]

    def __str__(self) -> str:
        return "\n".join(
            f"  {name}: {ran} of {lines} lines in functions, not {_ranges(missed)}"
            for name, (ran, lines, missed) in self.modules.items()
        )


def reached(target: str, inputs: Iterable[bytes]) -> Reached:
    """Try the inputs again and look at which lines run."""
    module = target_of(target)
    wanted = {str(ROOT / name): name for name in SHOWN[target]}
    ran: dict[str, set[int]] = defaultdict(set)

    def local(frame: FrameType, event: str, _: Any) -> Any:  # noqa: ANN401 - as sys.settrace wants
        if event == "line":
            ran[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def entered(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ANN401 - as above
        return local(frame, event, argument) if frame.f_code.co_filename in wanted else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        for data in inputs:
            module.take(data)
    finally:
        sys.settrace(before)
    figures = {}
    for path, name in wanted.items():
        lines = _lines(path)
        figures[name] = len(lines & ran[path]), len(lines), sorted(lines - ran[path])
    return Reached(figures)


def _lines(path: str) -> set[int]:
    """Lines of the functions of a file, without those that are only declared."""
    module = compile(Path(path).read_bytes(), path, "exec")
    return {
        line
        for code in _functions(module)
        for _, line in dis.findlinestarts(code)
        if line != code.co_firstlineno
    }


def _functions(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 0x2:  # CO_NEWLOCALS: a function's code, not a class's body
                yield constant
            yield from _functions(constant)


def _ranges(lines: Sequence[int]) -> str:
    """`3-5, 9`: consecutive lines as one."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in runs) or "none"
