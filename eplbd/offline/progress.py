"""How far long work has come, on standard error of a terminal and nowhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from eplbd.offline.extras import extra


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar while the block runs; call what it gives once for each of `total` steps."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    console = extra("rich.console", "a progress bar").Console(stderr=True)
    bars = extra("rich.progress", "a progress bar").Progress(console=console, transient=True)
    with bars:
        task = bars.add_task(label, total=total)
        yield lambda: bars.advance(task)
