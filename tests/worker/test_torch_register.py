"""The register on torch's stores: how they behave, contending ranks, a stopped and a dead host."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")

from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore  # noqa: E402

from eplbd.core.messages import Verdict  # noqa: E402
from eplbd.worker.register import RegisterError  # noqa: E402
from eplbd.worker.torch_register import TorchRegister  # noqa: E402
from tests.worker import torch_scenarios  # noqa: E402
from tests.worker.ranks import ProcessStage, Setting  # noqa: E402

pytestmark = pytest.mark.slow

SERVER = """
import datetime, sys
from torch._C._distributed_c10d import TCPStore
port = int(sys.argv[1])
store = TCPStore(
    "127.0.0.1", port, None, True, datetime.timedelta(seconds=20), wait_for_workers=False
)
print(store.port, flush=True)
sys.stdin.read()
"""


@dataclass
class Host:
    """A store in a process of its own, to be stopped and killed."""

    process: subprocess.Popen[str]
    port: int
    store: Store

    def stop(self) -> None:
        """Stop all its threads, and see it stopped: the signal alone takes its time to arrive."""
        os.kill(self.process.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def go_on(self) -> None:
        """End the stop."""
        os.kill(self.process.pid, signal.SIGCONT)


def serve(port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """Start a process that hosts a store; return it and its port."""
    command = [sys.executable, "-c", SERVER, str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.fixture
def host() -> Iterator[Host]:
    process, port = serve()
    with process:
        store = TCPStore("127.0.0.1", port, None, False, timedelta(seconds=20))
        yield Host(process, port, store)
        process.send_signal(signal.SIGCONT)
        process.kill()


@pytest.fixture(params=["tcp", "tcp below a prefix", "hash"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "hash":
        return HashStore()
    tcp = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)
    return PrefixStore("engine", tcp) if "prefix" in request.param else tcp


def test_the_first_proposal_holds(store: Store) -> None:
    with TorchRegister(store) as one, TorchRegister(store) as two:
        assert one.decide("a", Verdict.ABORT, deadline_s=5.0) is Verdict.ABORT
        assert two.decide("a", Verdict.COMMIT, deadline_s=5.0) is Verdict.ABORT
        assert two.decide("b", Verdict.COMMIT, deadline_s=5.0) is Verdict.COMMIT
        assert one.decide("b", Verdict.ABORT, deadline_s=5.0) is Verdict.COMMIT


def test_a_forgotten_key_leaves_nothing_and_is_decided_anew(store: Store) -> None:
    with TorchRegister(store) as register:
        register.decide("a", Verdict.ABORT, deadline_s=5.0)
        assert store.check(["eplbd/decisions/a"])
        register.forget("a", deadline_s=5.0)
        assert not store.check(["eplbd/decisions/a"])
        register.forget("a", deadline_s=5.0)
        assert register.decide("a", Verdict.COMMIT, deadline_s=5.0) is Verdict.COMMIT


def test_a_name_holds_what_was_published_last_and_nobody_waits_for_it(store: Store) -> None:
    with TorchRegister(store) as one, TorchRegister(store) as two:
        assert two.look("leader", deadline_s=5.0) == ""
        for value in ("tcp://a:1 k", "tcp://b:2 k"):
            one.publish("leader", value, deadline_s=5.0)
            assert two.look("leader", deadline_s=5.0) == value


def test_a_name_is_claimed_once(store: Store) -> None:
    with TorchRegister(store) as one, TorchRegister(store) as two:
        claimed = [each.claim("a b/c", deadline_s=5.0) for each in (one, two, one)]
    assert claimed == [True, False, False]


def test_something_else_under_the_key_is_no_verdict(store: Store) -> None:
    store.set("eplbd/decisions/a", "maybe")
    with TorchRegister(store) as register, pytest.raises(RegisterError, match="'a' holds 'maybe'"):
        register.decide("a", Verdict.COMMIT, deadline_s=5.0)


def test_four_contending_processes_never_disagree(process_stage: ProcessStage) -> None:
    answers = process_stage.play(Setting("gloo"), 4, torch_scenarios.contend, 300)
    assert answers == [answers[0]] * 4
    assert set(answers[0]) == {"commit", "abort"}


def test_a_stopped_host_is_an_error_in_time_and_not_the_end(host: Host) -> None:
    with TorchRegister(host.store) as register:
        register.decide("before", Verdict.COMMIT, deadline_s=10.0)
        host.stop()
        start = time.monotonic()
        for key in ("asked", "queued"):
            with pytest.raises(RegisterError, match=f"no answer for '{key}' in 0.3 s"):
                register.decide(key, Verdict.ABORT, deadline_s=0.3)
        assert time.monotonic() - start < 3.0
        host.go_on()
        # The call that was under way took effect, late; the one behind it was never made.
        assert register.decide("asked", Verdict.COMMIT, deadline_s=10.0) is Verdict.ABORT
        assert register.decide("queued", Verdict.COMMIT, deadline_s=10.0) is Verdict.COMMIT


def test_a_dead_host_is_an_error_naming_the_key_and_a_new_connection_is_made(host: Host) -> None:
    with TorchRegister(host.store) as register:
        register.decide("before", Verdict.COMMIT, deadline_s=10.0)
        host.process.kill()
        host.process.wait()
        with pytest.raises(RegisterError, match="'after'"):
            register.decide("after", Verdict.COMMIT, deadline_s=10.0)
        again, _ = serve(host.port)
        with again:
            verdict = register.decide("later", Verdict.ABORT, deadline_s=10.0)
            again.kill()
        assert verdict is Verdict.ABORT


def test_a_waiting_user_of_the_engines_client_does_not_hold_up_the_register(host: Host) -> None:
    """One client answers one call at a time; the register has its own."""
    with TorchRegister(host.store) as register, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(host.store.wait, ["never"], timedelta(seconds=2))
        try:
            start = time.monotonic()
            register.decide("a", Verdict.COMMIT, deadline_s=10.0)
            assert time.monotonic() - start < 1.5
        finally:
            host.store.clone().set("never", "now")  # type: ignore[attr-defined] # no stub
            waiting.result(10.0)


def until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_its_thread_ends_with_it(store: Store) -> None:
    with TorchRegister(store) as register:
        register.decide("a", Verdict.COMMIT, deadline_s=5.0)
        thread = register._thread  # noqa: SLF001 (no other way to see that it ends)
        assert thread.is_alive()
    until(lambda: not thread.is_alive())
