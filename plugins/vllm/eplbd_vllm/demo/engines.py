"""Engines in processes of their own: started, asked, stopped, and nothing left of them.

Owns a session of processes, its log, the names it leaves in /dev/shm, and the OpenAI interface of
`vllm serve` as far as the demo and the tests use it. It must not import vLLM, nor know eplbd.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

WAITING = "Waiting for connections to close"
"""What uvicorn says when nothing but its clients keeps a server from ending."""

PATIENCE_S = 600.0
"""An engine starts in a minute on two idle cores; where others keep them busy, in several."""

_SEGMENTS = Path("/dev/shm")  # noqa: S108 - where the kernel has them

OF_WORKERS = "-cpushm_"
"""In the names of the segments of vLLM's communicator between CPU workers, which it never removes
where the workers are ended by a signal."""

_OF_PYTHON = ("psm_", "sem.mp-")
"""Of `multiprocessing`, whose tracker removes them unless it is killed as well."""

QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}
"""A small vLLM on this machine's CPU, that talks to nobody else."""

_NOT_INHERITED = ("EPLBD_", "VLLM_", "PYTEST_", "PYTHONDONTWRITEBYTECODE")
"""The last one because vLLM imports five thousand modules in each of its processes: to compile them
anew every time is half of an engine's start."""

EP2 = (
    *("--tensor-parallel-size", "2", "--enable-expert-parallel"),
    *("--enable-eplb", "--eplb-config.num_redundant_experts", "2"),
)
"""Two ranks that share the experts, and a redundant slot on each."""


def environment(endpoint: str, **more: str) -> dict[str, str]:
    """Of an engine beside the daemon at `endpoint`; what the shell says of either is left out."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)
    }
    return inherited | QUIET | {"EPLBD_SOCKET": endpoint} | more


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def segments() -> set[str]:
    """Names in /dev/shm."""
    return {entry.name for entry in _SEGMENTS.iterdir()}


def _sweep(names: set[str]) -> None:
    """Remove the segments that ended workers of vLLM left: those that nobody has mapped."""
    for name in names:
        theirs = OF_WORKERS in name or name.startswith(_OF_PYTHON)
        if theirs and not mapped(name):
            with contextlib.suppress(OSError):
                (_SEGMENTS / name).unlink()


def mapped(name: str) -> bool:
    """Whether a live process uses the segment, under whatever name.

    glibc makes and maps a semaphore under another one, which is what `/proc` goes on to show.
    """
    try:
        known = (_SEGMENTS / name).stat()
    except OSError:
        return False
    device = f"{os.major(known.st_dev):02x}:{os.minor(known.st_dev):02x}"
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f" {device} {known.st_ino} " in maps.read_text(errors="replace"):
                return True
    return False


class EngineError(Exception):
    """An engine that ended, refused or did not come; the end of its log is in the message."""


class Engine:
    """The processes of one session, and those that have its scratch folder: torchrun's ranks."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path, scratch: str) -> None:
        self.popen, self.log, self.scratch = popen, log, scratch

    def processes(self) -> list[int]:
        """Those that live; zombies do not."""
        numbers = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in map(int, numbers) if self._has(pid)]

    def _has(self, pid: int) -> bool:
        about = Path(f"/proc/{pid}")
        try:
            stat = (about / "stat").read_text(encoding="utf-8", errors="replace")
            state, _, _, session = stat.rpartition(")")[2].split()[:4]
            if int(session) == self.popen.pid:
                return state != "Z"
            # Its ranks are sessions of their own. A process that has gone has no environment.
            return f"TMPDIR={self.scratch}".encode() in (about / "environ").read_bytes().split(
                b"\0"
            )
        except OSError:
            return False

    def wait(self) -> int:
        """Exit status. Raises EngineError where there is none in time."""
        self.wait_for(lambda: self.popen.poll() is not None, "the engine ends")
        return self.popen.returncode

    def wait_for(self, happened: Callable[[], bool], what: str, every_s: float = 0.1) -> None:
        """Return once it `happened`. Raises EngineError with `what` and the log if it does not."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            if time.monotonic() >= deadline:
                raise EngineError(f"did not happen: {what}\n{self.story()}")
            time.sleep(every_s)

    def lines(self, *words: str) -> list[str]:
        """Lines of the log that hold all of these."""
        text = self.log.read_text(errors="replace")
        return [line for line in text.splitlines() if all(word in line for word in words)]

    def story(self) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-60:])

    def stop(self) -> None:
        """As a service manager does, and wait until nothing of it lives."""
        self.popen.terminate()
        self.wait_for(self.over, "the engine's processes end")
        self.popen.wait()

    def over(self) -> bool:
        """Whether nothing of it lives."""
        return not self.processes()

    def kill(self) -> None:
        """End whatever lives."""
        while living := self.processes():
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.popen.wait()


@contextmanager
def started(command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> Iterator[Engine]:
    """Start an engine in a session of its own; nothing of that session outlives the block."""
    before = segments()
    # What it leaves is kept together: sockets between its processes, caches of configurations.
    with tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True) as scratch:
        with log.open("wb") as out:
            popen = subprocess.Popen(  # noqa: S603 - no shell: the arguments are ours
                [*map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**env, "TMPDIR": scratch, "HOME": scratch},
                cwd=scratch,
                start_new_session=True,
            )
        engine = Engine(popen, log, scratch)
        try:
            yield engine
        finally:
            engine.kill()
            _sweep(segments() - before)


class Server(Engine):
    """`vllm serve`, and its OpenAI interface. before: names in /dev/shm before it started."""

    def __init__(self, engine: Engine, port: int, model: str, before: set[str]) -> None:
        super().__init__(engine.popen, engine.log, engine.scratch)
        self.port, self.model, self.before = port, model, before
        self._asking: set[HTTPConnection] = set()

    def ready(self) -> None:
        """Wait until it serves."""
        self.wait_for(self._healthy, "the engine serves")

    def _healthy(self) -> bool:
        if self.popen.poll() is not None:
            raise EngineError(f"the engine ended\n{self.story()}")
        try:
            return self._ask("GET", "/health")[0] == 200
        except OSError:
            return False

    def over(self) -> bool:
        """Whether nothing of it lives; who is not answered any more hangs up.

        vLLM ends the task that hands on answers, and then waits without end for the connections of
        whoever had not got theirs.
        """
        if self.lines(WAITING):
            for connection in list(self._asking):
                if (sock := connection.sock) is not None:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
        return super().over()

    def connection(self) -> HTTPConnection:
        """Return a new one, not connected yet."""
        return HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def _ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        connection = self.connection()
        self._asking.add(connection)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            self._asking.discard(connection)
            connection.close()

    def complete(
        self, prompt: Sequence[int], words: Sequence[int] = (), tokens: int = 24
    ) -> list[int]:
        """Greedy token ids for `prompt`; only those in `words`, where there are any.

        Raises EngineError for a refusal, OSError or HTTPException where nobody answers.
        """
        body = self._question(prompt, tokens) | {"return_token_ids": True}
        if words:
            body["allowed_token_ids"] = list(words)
        status, answer = self._ask("POST", "/v1/completions", body)
        if status != 200:
            raise EngineError(f"status {status}: {answer.decode(errors='replace')[:500]}")
        found: list[int] = json.loads(answer)["choices"][0]["token_ids"]
        return found

    def hang_up(self, prompt: Sequence[int]) -> None:
        """Ask for a long stream and leave after its first bytes."""
        connection = self.connection()
        with contextlib.closing(connection), contextlib.suppress(HTTPException):
            content = json.dumps(self._question(prompt, 400) | {"stream": True})
            connection.request(
                "POST", "/v1/completions", content, {"Content-Type": "application/json"}
            )
            connection.getresponse().read(16)

    def _question(self, prompt: Sequence[int], tokens: int) -> dict[str, object]:
        return {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0.0,
            "ignore_eos": True,
        }


def serve_command(bin_: Path, model: Path, *options: str) -> list[str | Path]:
    """`vllm serve` as a small engine on `model`, which goes by its folder's name.

    bin_: of the environment that has vLLM. options: beyond those of a small engine.
    """
    command: list[str | Path] = [bin_ / "vllm", "serve", model, "--served-model-name", model.name]
    command += ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"]
    return [*command, "--no-enable-prefix-caching", "--seed", "0", *options]


@contextmanager
def serving(
    bin_: Path, folder: Path, endpoint: str, model: Path, *options: str
) -> Iterator[Server]:
    """Run `serve_command` here, as long as the block; its log lies in `folder`."""
    port, before = free_port(), segments()
    here = ("--port", str(port), "--host", "127.0.0.1")
    command = serve_command(bin_, model, *here, *options)
    log = folder / f"serve{port}.log"
    with started(command, log, environment(endpoint)) as engine:
        yield Server(engine, port, model.name, before)
