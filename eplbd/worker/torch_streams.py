"""Streams and events of whatever accelerator torch has, and their absence on a CPU.

Owns the side stream of transfers and the marks that order it with the forward's stream. It must not
know what is computed. Only `torch.accelerator`'s words are used, so CUDA and NPU take one path; on
a CPU an operation is over when the call returns, and every mark is reached at once.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

_POLL_S = 0.000_2
"""Between two looks at an event; a round takes milliseconds."""


class Mark(Protocol):
    """A point in a stream's order, moved by `record`."""

    def record(self) -> None:
        """Move to the end of what the calling thread's current stream was given so far."""
        ...

    def reached(self) -> bool:
        """Tell whether everything before the mark has happened. Never waits."""
        ...

    def hold_back(self) -> None:
        """Let what the calling thread's current stream is given next happen after the mark."""
        ...


class _CpuMark:
    def record(self) -> None:
        pass

    def reached(self) -> bool:
        return True

    def hold_back(self) -> None:
        pass


class _DeviceMark:
    """torch.Event; one that was never recorded counts as reached."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.Event(device)

    def record(self) -> None:
        self._event.record(torch.accelerator.current_stream(self._device))

    def reached(self) -> bool:
        return self._event.query()

    def hold_back(self) -> None:
        torch.accelerator.current_stream(self._device).wait_event(self._event)


def mark_on(device: torch.device) -> Mark:
    """Return a mark for the streams of `device`, reached until it is first recorded."""
    return _CpuMark() if device.type == "cpu" else _DeviceMark(device)


def side_stream(device: torch.device) -> AbstractContextManager[object]:
    """Return what makes a thread's operations run beside the forward, for as long as it is entered.

    Re-enterable. Entering also makes `device` the thread's current one, which a new thread lacks.
    """
    return nullcontext() if device.type == "cpu" else torch.Stream(device)


def reached_within(mark: Mark, deadline: float) -> bool:
    """Wait on the host, at most until `time.monotonic()` is `deadline`; for the stager thread."""
    while not mark.reached():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
