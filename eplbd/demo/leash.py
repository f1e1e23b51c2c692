"""Lets a process end with the one that started it, even if that one is killed.

Owns one system call, and a way to start a command under it: `python -m eplbd.demo.leash COMMAND`.
It must not know what is started.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def hold(number: signal.Signals) -> None:
    """Have the kernel send this process `number` when its parent ends; survives `exec`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    hold(signal.SIGTERM)
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - no shell: the arguments are ours
