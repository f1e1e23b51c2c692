"""One life of the policy child: spawn, exchange messages, read its standard error, kill, bury.

Owns the process, its group and its pipes. Must not know what is asked, nor when to restart.
"""

import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from subprocess import PIPE
from typing import Self

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from eplbd.wire.policy import (
    FROM_CHILD,
    MAX_ASK_BYTES,
    TO_CHILD,
    FromChild,
    ToChild,
    enframe,
    unframe,
)

LINE_BYTES = 2000
TAIL_LINES = 40
"""Last lines that a crash's detail quotes: a traceback by faulthandler has 10 to 30."""

_GONE = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead)
_PIECE_BYTES = 1 << 18  # no single write holds the loop for long
_GRACE_S = 0.5
_LAST_WORDS_S = 0.05  # an answer that was written just before the end is an answer
_FLOOD_S = 0.01  # rest per chunk of a flood: 64 KiB in 10 ms cost the daemon no visible time

# One thread: a policy shares the machine with the engine, and a sum must not depend on how many
# threads made it; nor an answer on the order of a set of strings.
_LIBRARIES = ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR")
_ENV = {f"{library}_NUM_THREADS": "1" for library in _LIBRARIES} | {"PYTHONHASHSEED": "0"}


def _cached() -> dict[str, str]:
    """Where compiled policies are kept under systemd, which gives no home (`CacheDirectory=`)."""
    folder = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    return {"NUMBA_CACHE_DIR": f"{folder}/numba"} if folder else {}


class ChildEndedError(Exception):
    """The child closed its pipe or died. Never leaves the policy host."""


class PolicyChild:
    """A running child. `tail` holds the last lines it wrote to standard error or output."""

    def __init__(self, process: Process, on_line: Callable[[str], bool]) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise TypeError("expected a process with three pipes")
        self.process = process
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._stdin = process.stdin
        self._stderr = process.stderr
        self._answers = BufferedByteReceiveStream(process.stdout)
        self._on_line = on_line
        self._drained = anyio.Event()
        self._exchange = anyio.CancelScope()
        self._seq = 0

    @classmethod
    async def spawn(
        cls, memory_bytes: int, on_line: Callable[[str], bool], *, niceness: int = 0
    ) -> Self:
        """Start a child; `attend` must run in a task from here on.

        on_line: takes a line, says whether it wanted it. niceness: by which it gives way to others
        where there are more threads than cores. Raises OSError.
        """
        # -P: the directory that the daemon happens to run in must not shadow modules.
        command = [sys.executable, "-P", "-m", "eplbd.policyproc", str(memory_bytes)]
        process = await anyio.open_process(
            command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={**_cached(), **os.environ, **_ENV},
            start_new_session=True,
        )
        if niceness:
            with contextlib.suppress(ProcessLookupError):  # it ended at once: found out later
                ours = os.getpriority(os.PRIO_PROCESS, 0)
                os.setpriority(os.PRIO_PGRP, process.pid, min(19, ours + niceness))
        return cls(process, on_line)

    @property
    def alive(self) -> bool:
        """False once the process is known to have ended."""
        return self.process.returncode is None

    async def exchange(self, message: ToChild, max_bytes: int) -> FromChild:
        """Send a message and wait for the answer, without a deadline.

        Raises:
            ChildEndedError: the child is gone.
            RemoteProtocolError: what it wrote is not a message of at most `max_bytes`.
            LocalProtocolError: `message` cannot be sent; nothing was.
        """
        self._seq += 1
        pieces = enframe(TO_CHILD.encode(message, self._seq, MAX_ASK_BYTES))
        try:
            with anyio.CancelScope() as self._exchange:
                await self._send(pieces)
                return FROM_CHILD.decode(await self._receive(max_bytes), max_bytes)[1]
        except (*_GONE, OSError) as error:
            raise ChildEndedError from error
        raise ChildEndedError

    async def _send(self, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, view.nbytes, _PIECE_BYTES):
                # Typed as bytes; the loop takes any buffer, and a copy of a window is 30 MB.
                await self._stdin.send(view[start : start + _PIECE_BYTES])  # type: ignore[arg-type]

    async def _receive(self, max_bytes: int) -> list[bytes | memoryview]:
        parser = unframe(max_bytes)
        need = next(parser)
        while True:
            try:
                need = parser.send(await self._answers.receive_exactly(need))
            except StopIteration as end:
                frames: list[bytes | memoryview] = end.value
                return frames

    async def attend(self) -> None:
        """Read what the child writes to standard error, and notice its end, until it is buried."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read_stderr)
            await self.process.wait()
            # Whatever it forked may hold the pipe open: there need be no end of file.
            await anyio.sleep(_LAST_WORDS_S)
            self._exchange.cancel()

    async def _read_stderr(self) -> None:
        rest = b""
        try:
            async for chunk in self._stderr:
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                wanted = [self._line(line) for line in lines]
                if not all(wanted):
                    await anyio.sleep(_FLOOD_S)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            if rest:
                self._line(rest)
            self._drained.set()

    def _line(self, raw: bytes) -> bool:
        line = raw[:LINE_BYTES].decode(errors="backslashreplace").rstrip()
        if not line:
            return True
        self.tail.append(line)
        return self._on_line(line)

    async def bury(self, *, grace: bool) -> str:
        """See to it that nothing of the child is left; say how it ended and what it said last.

        grace: let it end by itself for a moment, where it seems to be about to.
        """
        killed = False
        with anyio.CancelScope(shield=True):
            if grace:
                with anyio.move_on_after(_GRACE_S):
                    await self.process.wait()
            killed = self.alive
            # The whole group, so that what the policy forked goes as well. If the child is gone
            # its number is the group's for as long as the group has members.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
            # A descendant that left the group may hold the pipe open for ever.
            with anyio.move_on_after(_GRACE_S):
                await self._drained.wait()
            await self.process.aclose()
        code = self.process.returncode or 0
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return "\n".join(("killed" if killed else how, *self.tail))
