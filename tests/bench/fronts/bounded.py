"""One measurement in a process of its own, which ends when its time is up or when it crashes.

Peers loop for minutes and corrupt their heaps: neither may end a run of hours. Owns the child; must
not know what is measured.
"""

import multiprocessing
import resource
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

import msgspec

from tests.bench.fronts.rows import Row

PATIENCE = 10.0
"""Times the limit that a child may take by the wall clock: it may wait for others, or sleep."""
_FORK = multiprocessing.get_context("fork")  # the windows of a load, hundreds of MB, are there


def bounded(measure: Callable[[], Row], failed: Row, limit_s: float) -> Row:
    """What `measure` returns, or `failed` with the reason why it returned nothing.

    limit_s: CPU seconds, so that a busy machine leaves out no more than an idle one.
    """
    receiver, sender = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=_answer, args=(measure, sender, limit_s), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside idle threads
        child.start()
    sender.close()
    slow = msgspec.structs.replace(failed, error=f"did not answer in {limit_s:g} s", too_slow=True)
    try:
        if receiver.poll(PATIENCE * limit_s):
            return msgspec.json.decode(receiver.recv_bytes(), type=Row)
    except EOFError:
        child.join()
        code = child.exitcode or 0
        reason = f"died of signal {-code}" if code < 0 else f"ended with status {code}"
        if code != -signal.SIGXCPU:
            return msgspec.structs.replace(failed, error=reason)
    finally:
        child.kill()
        child.join()
        receiver.close()
    return slow


def _answer(measure: Callable[[], Row], sender: Connection, limit_s: float) -> None:
    seconds = max(int(limit_s), 1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    sender.send_bytes(msgspec.json.encode(measure()))
