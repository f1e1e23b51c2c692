"""Policies that misbehave in the live daemon: no forward, no map and no epoch suffers from it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.chaos.control import WINDOW_FORWARDS
from tests.chaos.lab import TEST_S, Lab
from tests.chaos.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_S)]

UNRULY = Path(__file__).with_name("guests") / "unruly.py"
DEADLINE_S, SPIN_S = 20.0, 0.5
MEMORY_BYTES = 768 * 2**20
SUSPENSION_S = 40.0
"""Three failures; where each ends the process, two starts of another one."""

SHIFT_FORWARDS = WINDOW_FORWARDS + 10

MISDEEDS = (
    ("raises", "raised", "the guest is unhappy"),
    ("spins", "timeout", f"no answer within {SPIN_S} s"),
    ("segfaults", "crashed", "SIGSEGV"),
    ("hoards", "memory", "MemoryError"),
    ("leaves_a_child", "crashed", "left behind"),
    ("returns_none", "invalid", "NoneType"),
    ("returns_the_wrong_shape", "invalid", "shape"),
    ("returns_smuggled_floats", "invalid", "float"),
    ("forgets_an_expert", "invalid", "expert 0"),
    ("names_experts_that_are_none", "invalid", "2147483647"),
    ("splits_unasked", "invalid", "budget.weighted"),
)
NAMES = [fault for fault, _, _ in MISDEEDS]


def _reload(lab: Lab, **keys: object) -> int:
    """Configure the live daemon; where its log then ended."""
    mark = lab.daemon.mark()
    lab.configure(**keys)
    lab.daemon.signal(signal.SIGHUP)
    lab.daemon.line("configuration reloaded", mark=mark)
    return mark


def _unruly(lab: Lab, fault: str) -> int:
    return _reload(
        lab,
        **{
            "policy__name": "unruly",
            "policy__deadline_s": SPIN_S if fault == "spins" else DEADLINE_S,
            "policy__memory_bytes": MEMORY_BYTES,
            "plugins__modules": [str(UNRULY)],
            "policy.options__fault": fault,
        },
    )


@pytest.mark.parametrize(("fault", "outcome", "words"), MISDEEDS, ids=NAMES)
def test_a_policy_fails_three_times_and_is_suspended(
    lab: Lab, fault: str, outcome: str, words: str
) -> None:
    with lab.scenario(f"policy {fault}"):
        mark = _unruly(lab, fault)
        suspended = lab.daemon.line("policy suspended, hold takes over", SUSPENSION_S, mark=mark)
        assert (suspended["policy"], suspended["failures"]) == ("unruly", 3)
        assert suspended["level"] == "error"
        failed = list(lab.daemon.since(mark, "policy failed"))
        assert [line["outcome"] for line in failed] == [outcome] * 3
        told = [line.get("detail", "") for line in failed]
        ended = [line["reason"] for line in lab.daemon.since(mark, "cycle ended", outcome="failed")]
        assert any(words in text for text in told + ended), (told, ended)
        _reload(lab)


def test_hold_takes_over(lab: Lab) -> None:
    """Whatever the traffic does, nothing moves any more; until the operator decides otherwise."""
    with lab.scenario("policy suspended"):
        mark = _unruly(lab, "raises")
        lab.daemon.line("policy suspended, hold takes over", mark=mark)
        held = lab.group.audit()
        later = held[0].forward + SHIFT_FORWARDS
        lab.group.until(lambda now: now[0].forward > later, "heat shifts")
        assert [r.flips for r in lab.group.audit()] == [r.flips for r in held]
        assert len(list(lab.daemon.since(mark, "policy failed"))) == 3
        _reload(lab)


def test_a_policy_prints(lab: Lab) -> None:
    """Standard output is the protocol's where a policy runs: what it prints goes to the log."""
    with lab.scenario("policy prints"):
        mark = _unruly(lab, "prints")

        def printed(line: str) -> bool:
            return any(lab.daemon.since(mark, "policy wrote", policy="unruly", line=line))

        for line in ("printed to standard output", "written to descriptor 1"):
            until(lambda: printed(line), SUSPENSION_S, f"{line!r} in the log")  # noqa: B023 - at once
        assert not any(lab.daemon.since(mark, "policy failed"))
        _reload(lab)


@pytest.mark.parametrize("fault", ["spins", "segfaults", "hoards", "forgets_an_expert"])
def test_a_shadow_that_misbehaves_costs_itself_alone(lab: Lab, fault: str) -> None:
    """Epochs go on settling, the active policy is not at fault, the other shadow is scored."""
    with lab.scenario(f"shadow {fault}"):
        mark = _reload(
            lab,
            **{
                "policy__shadow": ["unruly", "hold"],
                "policy__deadline_s": SPIN_S if fault == "spins" else DEADLINE_S,
                "policy__memory_bytes": MEMORY_BYTES,
                "plugins__modules": [str(UNRULY)],
                "policy.shadow_options.unruly__fault": fault,
            },
        )
        suspended = lab.daemon.line("shadow suspended", SUSPENSION_S, mark=mark)
        assert (suspended["policy"], suspended["failures"]) == ("unruly", 3)
        later = lab.daemon.mark()
        lab.settles_further(epochs=2)
        lab.daemon.line("shadow scored", SUSPENSION_S, mark=later, policy="hold")
        assert len(list(lab.daemon.since(mark, "shadow failed"))) == 3
        assert not any(lab.daemon.since(mark, "policy failed"))
        assert not any(lab.daemon.since(mark, "policy suspended, hold takes over"))
        assert not any(lab.daemon.since(later, "shadow scored", policy="unruly"))
        _reload(lab)
