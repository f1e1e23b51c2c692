"""The daemon's life beside a group that serves: late, stopped, reloaded, doubled, out of disk."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eplbd.core import messages as m
from eplbd.core.messages import Gate, Verdict
from tests.chaos.lab import TEST_S, Lab
from tests.chaos.proxy import DROP
from tests.chaos.rules import Match, Moment, says
from tests.chaos.served import END_S, Line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]

STOP_S = 5.0
"""The daemon's own promise; START and END around it are the machine's."""
DISK_BYTES = 64 * 1024


def test_a_daemon_comes_late(lab: Lab) -> None:
    """Nobody is there for a while; a group that has never seen one is how each lab begins."""
    with lab.scenario("no daemon"):
        lab.daemon.kill()
        alone = lab.group.until(
            lambda now: not any(r.connected for r in now), "the ranks are alone"
        )
        later = alone[0].forward + 40
        lab.group.until(lambda now: now[0].forward > later, "forwards without a daemon")


def _terminated(lab: Lab, moment: Match) -> Line:
    """Stop the daemon at this moment of an epoch; the line that tells how the epoch ended."""
    mark = lab.daemon.mark()
    stop = Moment(moment, lambda: lab.daemon.signal(signal.SIGTERM), deaf=False)
    with lab.at(stop):
        began = time.monotonic()
        assert lab.daemon.ended() == 0
        assert time.monotonic() - began < STOP_S
    assert any(lab.daemon.since(mark, "stopping"))
    assert not any(lab.daemon.since(mark, "stopped midway, the workers end the epoch"))
    return lab.daemon.line("epoch ended", mark=mark, epoch=getattr(stop.message, "epoch", 0))


def test_terminated_while_ranks_are_armed(lab: Lab) -> None:
    """Giving up is a write: the register says abort before any rank is told."""
    armed = says(m.Armed)
    with lab.scenario("SIGTERM: armed"):
        with lab.group.proxy.obeying(lambda p: DROP if p.rank == 2 and armed(p) else None):
            ended = _terminated(lab, armed)
        assert (ended["outcome"], ended["reason"]) == ("aborted", "the daemon stops")


def test_terminated_when_the_flip_is_decided(lab: Lab) -> None:
    """There is no way but forward, and that is not far."""
    with lab.scenario("SIGTERM: decided"):
        decided = says(m.Decided, gate=Gate.FLIP, verdict=Verdict.COMMIT)
        ended = _terminated(lab, decided)
        assert ended["outcome"] == "settled"
        assert any(lab.daemon.state.glob("*.placement"))


def test_reloaded_in_an_epoch(lab: Lab) -> None:
    with lab.scenario("SIGHUP: armed"):
        mark = lab.daemon.mark()
        lab.configure(balance__interval_s=0.15)
        reload = Moment(says(m.Armed), lambda: lab.daemon.signal(signal.SIGHUP), deaf=False)
        with lab.at(reload):
            changed = lab.daemon.line("configuration reloaded", mark=mark)["changed"]
        assert changed == ["balance.interval_s"]
        epoch = getattr(reload.message, "epoch", 0)
        assert lab.daemon.line("epoch ended", mark=mark, epoch=epoch)["outcome"] == "settled"
        lab.configure()


@pytest.mark.parametrize("own_state", [False, True])
def test_a_second_daemon_is_refused(lab: Lab, tmp_path: Path, own_state: bool) -> None:
    """On the same socket, be its state directory another one or not; the first goes on."""
    with lab.scenario(f"second daemon, own state: {own_state}"):
        config = tmp_path / "second.toml"
        text = lab.daemon.config.read_text()
        if own_state:
            text = text.replace(
                json.dumps(str(lab.daemon.state)), json.dumps(str(tmp_path / "state"))
            )
        config.write_text(text)
        first = lab.daemon.popen
        assert first is not None
        mark = lab.daemon.mark()
        with lab.daemon.launch(config) as second:
            try:
                said, _ = second.communicate(timeout=END_S)
            finally:
                second.kill()
        assert second.returncode != 0
        assert f"another eplbd (process {first.pid}) holds".encode() in said
        assert b"Traceback" not in said
        lab.settles_further()
        assert not any(lab.daemon.since(mark, "rank lost"))


@contextmanager
def _small_disk(where: Path) -> Iterator[None]:
    """A file system of its own in `where`; the test is skipped where that is not permitted."""
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(where)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=END_S)
    except FileNotFoundError:
        pytest.skip("cannot mount a small tmpfs: there is no `mount`")
    if done.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True, timeout=END_S)


def test_the_disk_is_full(lab: Lab, tmp_path: Path) -> None:
    """Each epoch that cannot be stored is said so; then there is room again."""
    small = tmp_path / "small"
    with lab.scenario("a full disk"), _small_disk(small):
        lab.daemon.kill()
        lab.configure(daemon__state_dir=str(small))
        lab.daemon.start()
        with pytest.raises(OSError, match="No space left"):
            (small / "filler").write_bytes(bytes(2 * DISK_BYTES))
        mark = lab.daemon.mark()
        refused = lab.daemon.line("placement not stored", mark=mark)
        assert refused["level"] == "error"
        assert "No space left" in refused["reason"]
        lab.settles_further(epochs=2)
        (small / "filler").unlink()
        _stored(lab, small)
        lab.daemon.kill()
        lab.configure()


def _stored(lab: Lab, folder: Path) -> None:
    lab.group.until(lambda _: any(folder.glob("*.placement")), "a placement is stored again")


def test_a_group_is_killed_and_comes_back(lab: Lab) -> None:
    """In the middle of an epoch; the same daemon takes the next life up, under a later term.

    The new ranks start on the engine's own layout, with weights to match; whatever was settled
    before is gone back to, and every slot holds what the map says.
    """
    with lab.scenario("a new life of the group"):
        with lab.at(Moment(says(m.Staged), lambda: None, nth=2)):
            before = lab.daemon.line("group gathered")
            lab.group.kill()
        mark = lab.daemon.mark()
        lab.start_group()
        restarted = lab.daemon.line("group restarted", mark=mark)
        assert restarted["level"] == "warning"
        gathered = lab.daemon.line("group gathered", mark=mark)
        assert gathered["term"] > before["term"]
        assert lab.daemon.line("group ready", mark=mark)["epoch"] == 0
        assert lab.daemon.line("going back to the stored placement", mark=mark)["moves"] > 0
