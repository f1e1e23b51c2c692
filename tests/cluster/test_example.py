"""The README's three nodes, word for word: its commands in a shell on each of three hosts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from tests.chaos.waiting import until
from tests.cluster.hosts import ENGINE, Host, open_room, why_not

TEST_S = 300
STEP_S = 120.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(TEST_S),
    pytest.mark.skipif(not os.environ.get("EPLBD_NIGHTLY"), reason="nightly: the README's nodes"),
    pytest.mark.skipif(bool(why_not()), reason=f"no hosts made of namespaces: {why_not()}"),
]

REPOSITORY = Path(__file__).resolve().parents[2]
SAID = b"--- said, status "


def blocks(heading: str) -> list[str]:
    """The shell commands of a section of the README, block by block."""
    text = (REPOSITORY / "README.md").read_text("utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"(?s)```sh\n(.*?)```", section)


def filled(block: str, values: dict[str, str]) -> str:
    """The block in which every name has the value of a reader's own node; no other change."""
    for name, value in values.items():
        block, times = re.subn(rf"(?m)\b{name}=\S+", f"{name}={value}", block)
        assert times == 1, name
    assert block.count("=") == len(values), "a name that the reader is told of, and the test not"
    return block


class Shell:
    """A reader's shell on a host."""

    def __init__(self, host: Host) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.host = host
        self.popen = subprocess.Popen(
            [*host.prefix, "bash", "-e"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": path, "HOME": os.environ["HOME"], "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.said: list[str] = []

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def type(self, block: str) -> None:
        """Type in a block."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(block.encode() + b'echo "' + SAID + b'$?"\n')
        self.popen.stdin.flush()

    def answer(self) -> str:
        """What the block said, once it is through; AssertionError where it failed."""
        said: list[bytes] = []
        while not (said and said[-1].startswith(SAID)):
            try:
                line = self._lines.get(timeout=STEP_S)
            except Empty:
                line = b""
            text = b"".join(said).decode(errors="replace")
            assert line, f"{self.host.name}: the shell has ended, or nothing comes\n{text}"
            said.append(line)
        text = b"".join(said[:-1]).decode(errors="replace")
        assert said[-1].split()[-1] == b"0", f"{self.host.name}: {text}"
        return text

    def end(self) -> None:
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._reader.join()
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.close()
        self.popen.stdout.close()


@contextmanager
def shells(hosts: Sequence[Host]) -> Iterator[list[Shell]]:
    """A shell on each host; whatever they started ends with them."""
    with ExitStack() as stack:
        opened = [Shell(host) for host in hosts]
        for shell in opened:
            stack.callback(shell.end)
        yield opened


def test_the_three_nodes_of_the_readme(tmp_path: Path) -> None:
    names, keys, daemons, ranks, status = blocks("On three nodes")
    with open_room(["one", "two", "three"], delay_s=0.001, loss=0.0) as room:
        (tmp_path / "shared").mkdir()
        with shells(room.hosts) as readers:
            for shell in readers:
                here = tmp_path / shell.host.name
                here.mkdir()
                mine = {
                    "SHARED": str(tmp_path / "shared"),
                    "FIRST": room.hosts[0].engine,
                    "ADDRESS": shell.host.engine,
                    "GLOO_SOCKET_IFNAME": ENGINE,
                    "NODE": str(shell.host.index - 1),
                    "HERE": str(here),
                }
                shell.type(filled(names, mine))
            for block in ("", keys, daemons):
                for shell in readers:
                    shell.type(block)
            for shell in readers:
                said = "".join(shell.answer() for _ in range(4))
                assert "public key" in said
            serving = [tmp_path / host.name / "eplbd.log" for host in room.hosts]
            until(
                lambda: all("serving" in log.read_text() for log in serving),
                STEP_S,
                lambda: "\n".join(log.read_text() for log in serving),
            )
            for shell in readers:
                shell.type(ranks)
            last, *_ = [shell.answer() for shell in readers]
            story = last + "\n".join(log.read_text() for log in serving)
            assert "outputs identical to the twin's" in last, story
            assert re.search(r"[1-9]\d* epochs settled on all", last), story
            readers[0].type(status)
            assert "demo" in readers[0].answer()
