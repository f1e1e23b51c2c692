"""The command's frame around a run: what must be installed, where things are shown, signals.

Owns the temporary folder and the exit status. It must not know what happens in a run.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from eplbd.demo.processes import Interrupted, Processes
from eplbd.demo.run import Run
from eplbd.demo.settings import Options, plan_of
from eplbd.demo.view import Plain, View
from eplbd.errors import ConfigError

STDOUT = "-"

FAILED = 1
INTERRUPTED = 130
"""As a shell reports a command that Ctrl-C ended."""


def demo(options: Options, json: str | None) -> int:
    """Run the demo and show it; return the exit status.

    json: file for the figures, or `STDOUT`, which then gets nothing else. Raises ConfigError for
    what is missing or cannot be done.
    """
    require("torch", "rich")
    plan = plan_of(options)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eplbd-demo-")))
        result = None if json is None else stack.enter_context(open_result(json))
        view = stack.enter_context(open_view(sys.stderr if json == STDOUT else sys.stdout))
        with Processes(folder) as processes, signals_to(processes):
            run = Run(options, plan, processes, view, folder)
            run.play()
        figures = run.figures()
        view.close(figures.verdict)
        if result is not None:
            result.write(msgspec.json.encode(figures).decode() + "\n")
    if run.interrupts:
        return INTERRUPTED
    return 0 if figures.ok else FAILED


def require(*modules: str) -> None:
    """Raise ConfigError where one of these is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"eplbd demo needs {' and '.join(missing)}: pip install 'eplbd[cpu,policies]'"
        )


def open_view(file: TextIO) -> View:
    """A table where that can be drawn, lines elsewhere."""
    from rich.console import Console  # noqa: PLC0415 - of the extra, hence after `require`

    console = Console(file=file)
    if console.is_terminal and console.encoding.startswith("utf"):
        from eplbd.demo.table import LiveTable  # noqa: PLC0415 - as above

        return LiveTable(console)
    return Plain(lambda line: print(line, file=file, flush=True))


@contextmanager
def open_result(where: str) -> Iterator[TextIO]:
    """Open the file for the figures, or stdout, before anything is started."""
    if where == STDOUT:
        yield sys.stdout
        return
    try:
        file = Path(where).open("w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ConfigError(f"--json {where}: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def signals_to(processes: Processes) -> Iterator[None]:
    """Let Ctrl-C, a service manager or a closing terminal end the run instead of this process."""

    def interrupt(number: int, _: object) -> None:
        processes.events.put(Interrupted(number))

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
