"""An operator's orders at ranks that hold real weights: no output changes, nobody waits."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from eplbd.cli import main
from eplbd.runtime.status import Document, read_document
from tests.chaos.lab import TEST_S, Lab
from tests.chaos.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]

SOON_S = 30.0


def ctl(lab: Lab, *words: str) -> str:
    done = CliRunner().invoke(main, ["ctl", *words, "--config", str(lab.daemon.config)])
    assert done.exit_code == 0, (done.output, done.exception, lab.story())
    return done.output


def status(lab: Lab) -> Document:
    return read_document(ctl(lab, "status", "--json").encode())


def went(lab: Lab, mark: int, author: str) -> None:
    """Wait until a rebalance of this author is over."""
    lines = lab.daemon.line("cycle ended", mark=mark, policy=author)
    assert lines["outcome"] in ("applied", "partly"), lab.story()


def test_a_freeze_in_the_middle_of_everything(lab: Lab) -> None:
    with lab.scenario("ctl freeze"):
        ctl(lab, "freeze")
        until(
            lambda: all(group.epoch_now is None for group in status(lab).snapshot.groups),
            SOON_S,
            lab.story,
        )
        flips = [report.epoch for report in lab.group.audit()]
        later = lab.group.newest() + 120
        lab.group.until(lambda now: now[0].forward > later, "forwards while frozen")
        assert [report.epoch for report in lab.group.audit()] == flips
        ctl(lab, "resume")


def test_a_saved_placement_is_gone_back_to(lab: Lab) -> None:
    with lab.scenario("ctl save, rollback"):
        ctl(lab, "save", "lab")
        lab.settles_further()
        mark = lab.daemon.mark()
        ctl(lab, "rollback", "lab")
        went(lab, mark, "rollback")
        ctl(lab, "resume")


def test_a_rank_is_drained(lab: Lab) -> None:
    """The ranks left balance on; those that were drained get no more than their slots' share."""
    with lab.scenario("ctl drain"):
        told = ctl(lab, "drain", "1")
        assert "is drained" in told
        lab.settles_further(epochs=2)
        assert status(lab).orders[-1].drained == (1,)
        ctl(lab, "undrain", "1")
