"""The demo, act by act: a reference, an engine in two ranks, a daemon beside it, changing topics.

Owns the acts and the verdict. What is shown are the daemon's own figures, from its log, and the
comparison of tokens. It must not know vLLM, torch, or how a daemon works.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eplbd_vllm.demo.clients import Clients, answers
from eplbd_vllm.demo.engines import EP2, Server, serving

TOPIC_S = 40.0
"""In which a window of heat fills, is planned from and moved by, and the effect is measured."""

DAEMON = {
    "policy.name": "greedy",
    "log.format": "json",
    "balance.interval_s": "4.0",
    "balance.window_steps": "32",
    "balance.min_steps": "8",
    "balance.min_gain": "0.01",
    "balance.horizon_s": "86400",
    "balance.pause_s": "0.2",
    "epoch.margin_forwards": "4",
    "epoch.guard_forwards": "1",
    "epoch.stage_timeout_s": "60",
    "transfer.inflation_ceiling": "10",
    "metrics.enabled": "false",
    "session.silence_s": "30",
}
"""A server changes its traffic by the hour, this demo twice a minute: all that counts in seconds or
forwards is shorter by that much. Ranks that share two cores slow each other's forwards anyway."""


SHAPES = {
    "qwen3": "Qwen3's shape: 3 layers of 8 experts, top-2",
    "deepseek": "DeepSeek-V3's shape: a dense layer, 2 layers of 8 experts and a shared one, top-2",
}

ALONE: dict[str, tuple[str, ...]] = {"qwen3": (), "deepseek": ("--tensor-parallel-size", "2")}
"""What the reference is served with. On a CPU latent attention gives other tokens in two ranks than
in one, whatever its experts do."""

BATCHED = {"qwen3": True, "deepseek": False}
"""Whether vLLM alone gives a prompt the same tokens in any company; latent attention does not."""


@dataclass(frozen=True, slots=True)
class Options:
    """daemon: the command `eplbd`. bin: of the environment that has vLLM. shape: of the model."""

    daemon: Path
    bin: Path
    shape: str = "qwen3"


class Daemon:
    """The daemon's process, and the lines of its log."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def lines(self, event: str) -> list[dict[str, object]]:
        """Every line of this event, oldest first."""
        found: list[dict[str, object]] = []
        for line in self._log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if line.get("event") == event]


@contextmanager
def daemon(
    options: Options, folder: Path, endpoint: str, more: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """Run `eplbd serve`, for as long as the block. more: settings over those of the demo."""
    settings = (
        DAEMON
        | dict(more or {})
        | {"daemon.socket": endpoint, "daemon.state_dir": str(folder / "state")}
    )
    flags = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    log = folder / "daemon.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(  # noqa: S603 - no shell: the arguments are ours
            [options.daemon, "serve", *flags], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield Daemon(log)
    finally:
        popen.terminate()
        popen.wait()


def write_tiny(options: Options, model: Path) -> None:
    """Write the model that is served."""
    say(f"writing a tiny random model, {SHAPES[options.shape]}")
    write: list[str | Path] = [options.bin / "python", "-m", "eplbd_vllm.demo.torch_tiny"]
    write += [options.shape, model]
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - as above


def play(options: Options, folder: Path) -> bool:
    """Run it; whether everything held."""
    model = folder / "tiny"
    write_tiny(options, model)
    nobody = f"ipc://{folder}/nobody.sock"
    say("vllm serve without expert parallelism: the reference")
    with _served(options, folder, nobody, model, *ALONE[options.shape]) as server:
        expected = answers(server)
        server.stop()

    say("vllm serve, two EP ranks with one redundant slot each, and eplbd beside it")
    endpoint = f"ipc://{folder}/w.sock"
    with (
        daemon(options, folder, endpoint) as beside,
        _served(options, folder, endpoint, model, *EP2) as server,
    ):
        for line in server.lines("eplbd balances this engine"):
            say(line.partition("] ")[2])
        equal = [answers(server) == expected]
        for number in (0, 1):
            clients = Clients(server)
            clients.topic = 5 * number
            with clients.busy():
                given = _act(number, server, beside)
            equal += [each == expected for each in given if BATCHED[options.shape]]
            equal.append(answers(server) == expected)
        settled = _settled(beside)
        server.stop()
    when = "before, amid and after" if BATCHED[options.shape] else "before and after"
    return _verdict(settled, when, equal, frozen=bool(beside.lines("placement frozen")))


@contextmanager
def _served(
    options: Options, folder: Path, endpoint: str, model: Path, *more: str
) -> Iterator[Server]:
    began = time.monotonic()
    with serving(options.bin, folder, endpoint, model, "--enforce-eager", *more) as server:
        server.ready()
        say(f"  serves after {time.monotonic() - began:.0f} s")
        yield server


def _act(number: int, server: Server, beside: Daemon) -> list[list[list[int]]]:
    """One topic; returns the answers that were given amid it."""
    cycles, epochs = len(beside.lines("cycle ended")), _settled(beside)
    end = time.monotonic() + TOPIC_S
    given = []
    while time.monotonic() < end:
        given.append(answers(server))
        time.sleep(1.0)
    say(f"topic {number + 1}: {_settled(beside) - epochs} epochs settled")
    for line in beside.lines("cycle ended")[cycles:]:
        # Where the next plan came before enough steps were measured there is no figure after.
        if line["outcome"] == "applied" and line["par_realised"]:
            say(
                f"  PAR {line['par_before']:.2f} before, {line['par_predicted']:.2f} predicted, "
                f"{line['par_realised']:.2f} after {line['moves']} moves"
            )
    return given


def _settled(beside: Daemon) -> int:
    return sum(line["outcome"] == "settled" for line in beside.lines("epoch ended"))


def _verdict(settled: int, when: str, equal: list[bool], *, frozen: bool) -> bool:
    tokens = "equal to the reference" if all(equal) else "NOT those of the reference"
    say(f"{settled} epochs settled; greedy tokens, {when} the moves: {tokens}")
    if frozen:
        say("the placement was frozen: ranks contradicted each other")
    return all(equal) and settled > 0 and not frozen


def say(line: str) -> None:
    """Show a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
