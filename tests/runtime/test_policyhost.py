"""The policy host against guests that fail in every way known: each is counted, and it goes on."""

import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import numpy as np
import psutil
import pytest

from eplbd import config
from eplbd.core.events import Note
from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement, validate
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, LocalProtocolError, PolicyError
from eplbd.runtime.policyhost import BACKOFF_S, Failure, PolicyHost, Proposal, list_policies

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

GUESTS = Path(__file__).parents[1] / "plugins" / "guests"
TRIGGER = 666
CURRENT = Placement.linear(2, 8, 4, 3)
TOPOLOGY = Topology(4, 3, (0, 0, 1, 1))
MEMORY_BYTES = 1 << 29


def window(first: int = 1, steps: int = 4) -> Heat:
    counts = np.ones((steps, CURRENT.layers, CURRENT.experts), np.int32)
    counts[0, 0, 0] = first
    counts.setflags(write=False)
    return Heat(counts, "all")


def host_of(
    *guests: str,
    name: str = "faulty",
    options: Mapping[str, object] | None = None,
    start_s: float = 30.0,
    say: Callable[[Note], None] | None = None,
) -> PolicyHost:
    policy = config.Policy(name=name, memory_bytes=MEMORY_BYTES, options=dict(options or {}))
    modules = tuple(str(GUESTS / f"{guest}.py") for guest in guests or ("faulty",))
    plugins = config.Plugins(enabled=(), modules=modules)
    return PolicyHost(policy, plugins, start_s=start_s, say=say)


async def ask(
    host: PolicyHost,
    heat: Heat,
    deadline_s: float = 5.0,
    *,
    weighted: bool = False,
    current: Placement = CURRENT,
) -> Proposal | Failure:
    budget = Budget(None, None, deadline_s=deadline_s, expert_bytes=1, weighted=weighted)
    return await host.propose(heat, TOPOLOGY, current, budget)


def pid_of(host: PolicyHost) -> int:
    pid = host.statistics().pid
    assert pid is not None
    return pid


async def until(condition: Callable[[], bool], deadline_s: float = 5.0) -> None:
    with anyio.fail_after(deadline_s):
        while not condition():  # noqa: ASYNC110  # of another process; it sets no event here
            await anyio.sleep(0.01)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture(autouse=True)
async def _nothing_is_left_behind() -> AsyncIterator[None]:
    yield
    for child in psutil.Process().children():
        assert "eplbd.policyproc" not in child.cmdline(), f"{child} was left behind"


@pytest.mark.parametrize(
    ("fault", "outcome", "detail"),
    [
        ("raises", "raised", "RuntimeError: the guest is unhappy"),
        ("leaves", "raised", "SystemExit: 7"),
        ("dies", "crashed", "exit status 3"),
        ("spins", "timeout", "no answer within 0.5 s"),
        ("ignores_signals", "timeout", "no answer within 0.5 s"),
        ("stops", "timeout", "no answer within 0.5 s"),
        ("segfaults", "crashed", "SIGSEGV"),
        ("allocates", "memory", "Unable to allocate"),
        ("hoards", "memory", "MemoryError"),
        ("recurses", "raised", "RecursionError"),
        ("leaves_a_child", "crashed", "exit status 0"),
        ("daemonises", "crashed", "exit status 0"),
        ("scribbles", "invalid", "wrote no message"),
        ("closes_everything", "crashed", "exit status 1"),
        ("returns_none", "invalid", "returned NoneType, expected eplbd.Placement"),
        ("returns_an_array", "invalid", "returned ndarray, expected eplbd.Placement"),
        ("returns_the_wrong_shape", "invalid", r"shape \(1, 4, 3\), expected"),
        ("returns_floats", "invalid", "dtype float64, expected an integer dtype"),
        ("returns_objects", "invalid", "object of shape"),
        ("returns_smuggled_floats", "invalid", "float64 of shape"),
        ("returns_too_much", "invalid", "expected a message of at most"),
        ("writes_to_its_input", "raised", "read-only"),
        ("unlocks_its_input", "raised", "WRITEABLE"),
    ],
)
async def test_a_fault_is_counted_and_the_host_recovers(
    fault: str, outcome: str, detail: str
) -> None:
    before = CURRENT.slots.copy()
    deadline_s = 0.5 if outcome == "timeout" else 5.0
    async with host_of(options={"fault": fault}) as host:
        failure = await ask(host, window(TRIGGER), deadline_s)
        assert isinstance(failure, Failure)
        assert failure.outcome == outcome
        assert re.search(detail, failure.detail), failure.detail
        assert failure.elapsed_s < deadline_s + 2.0
        assert isinstance(await ask(host, window()), Proposal)
        assert host.statistics().failures == {outcome: 1}
        assert host.statistics().proposals == 1
    assert (CURRENT.slots == before).all()


@pytest.mark.parametrize("fault", ["forks", "reads_stdin"])
async def test_a_guest_that_does_odd_things_may_answer(fault: str) -> None:
    async with host_of(options={"fault": fault}) as host:
        for first in (TRIGGER, 1, TRIGGER):
            proposal = await ask(host, window(first))
            assert isinstance(proposal, Proposal)
            assert (proposal.slots == CURRENT.slots).all()
        assert host.statistics().starts == 1


async def test_a_guest_is_told_how_fast_ranks_are() -> None:
    async with host_of("turning", name="turning") as host:
        for slowest in (0, 2):
            speed = tuple(0.5 if rank == slowest else 1.0 for rank in range(4))
            budget = Budget(None, None, deadline_s=5.0, expert_bytes=1)
            answer = await host.propose(window(), replace(TOPOLOGY, speed=speed), CURRENT, budget)
            assert isinstance(answer, Proposal)
            assert np.array_equal(answer.slots, np.roll(CURRENT.slots, slowest, axis=1))


async def test_a_guest_that_leaks_is_started_anew_when_its_memory_is_spent() -> None:
    """Twice: what it had leaked is gone with its process."""
    async with host_of(options={"fault": "leaks"}) as host:
        for spent in (1, 2):
            answered = 0
            while isinstance(answer := await ask(host, window(TRIGGER)), Proposal):
                answered += 1
                assert answered < MEMORY_BYTES >> 26
            assert answer.outcome == "memory"
            assert answered > 0
            assert host.statistics().failures == {"memory": spent}
        assert isinstance(await ask(host, window()), Proposal)
        assert host.statistics().starts == 3


async def test_what_a_guest_prints_is_told() -> None:
    notes: list[Note] = []
    async with host_of(options={"fault": "prints"}, say=notes.append) as host:
        assert isinstance(await ask(host, window(TRIGGER)), Proposal)
        await until(lambda: host.statistics().lines_logged >= 2)
    lines = {note.fields["line"] for note in notes if note.event == "policy wrote"}
    assert lines == {"printed to standard output", "written to descriptor 1"}


async def test_a_flood_of_lines_is_cut() -> None:
    async with host_of(options={"fault": "floods"}) as host:
        assert isinstance(await ask(host, window(TRIGGER)), Proposal)
        await until(lambda: host.statistics().lines_dropped >= 4801)
        assert host.statistics().lines_logged == 200


async def test_the_whole_group_dies_with_the_guest() -> None:
    async with host_of(options={"fault": "leaves_a_child"}) as host:
        failure = await ask(host, window(TRIGGER))
        assert isinstance(failure, Failure)
        left = re.search(r"left behind (\d+)", failure.detail)
        assert left is not None
        await until(partial(is_gone, int(left[1])))


async def test_leaving_the_host_kills_a_spinning_guest() -> None:
    async with host_of(options={"fault": "spins"}) as host:
        pid = pid_of(host)
        with anyio.move_on_after(0.3) as scope:
            await ask(host, window(TRIGGER), deadline_s=60)
        assert scope.cancelled_caught
        await until(partial(is_gone, pid))
        assert isinstance(await ask(host, window()), Proposal)
        pid = pid_of(host)
    await until(partial(is_gone, pid))


async def test_a_guest_that_died_between_two_questions_costs_no_failure() -> None:
    async with host_of() as host:
        os.kill(pid_of(host), signal.SIGKILL)
        await until(lambda: host.statistics().pid is None)
        assert isinstance(await ask(host, window()), Proposal)
        assert host.statistics().starts == 2
        assert host.statistics().failures == {}


async def test_one_question_at_a_time() -> None:
    async with host_of(options={"fault": "spins"}) as host, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, host, window(TRIGGER), 0.5)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(LocalProtocolError, match="one question at a time"):
            await ask(host, window())


async def test_a_large_window_travels() -> None:
    async with host_of() as host:
        assert isinstance(await ask(host, window(steps=200_000)), Proposal)


async def test_a_question_long_after_a_death_is_answered() -> None:
    """Its rest is over long before: a policy is asked every ten seconds or so."""
    async with host_of(options={"fault": "dies"}) as host:
        assert isinstance(await ask(host, window(TRIGGER)), Failure)
        rest = anyio.current_time() + BACKOFF_S
        await until(lambda: anyio.current_time() > rest)
        assert isinstance(await ask(host, window()), Proposal)


async def test_a_guest_that_dies_each_time_is_started_each_time() -> None:
    async with host_of(options={"fault": "dies"}) as host:
        for _ in range(3):
            assert isinstance(await ask(host, window(TRIGGER)), Failure)
        assert host.statistics().failures == {"crashed": 3}
        assert isinstance(await ask(host, window()), Proposal)
        assert host.statistics().starts == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("falty", {}, r"unknown policy `falty`; did you mean `faulty`\?; on offer: faulty, hold"),
        ("3", {}, r"unknown policy `3` \(vllm-ascend's number for `flashlb`\); on offer"),
        ("faulty", {"falt": 1}, "policy.options.falt: .* did you mean `fault`?"),
        ("faulty", {"fault": 1}, "policy.options.fault: Expected `str`, got `int`"),
        ("hold", {"x": 1}, "policy.options.x: `hold` has no such option; known: none"),
    ],
)
async def test_what_the_operator_got_wrong_is_said_at_start(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        async with host_of(name=name, options=options):
            pass


async def test_the_place_of_a_wrong_setting_is_named() -> None:
    policy = config.Policy(name="nobody")
    plugins = config.Plugins(enabled=())
    host = PolicyHost(policy, plugins, where=lambda path: f"eplbd.toml:4 ({path})")
    with pytest.raises(
        ConfigError, match=r"^eplbd.toml:4 \(policy.name\): unknown policy `nobody`"
    ):
        async with host:
            pass


@pytest.mark.parametrize(
    ("guest", "message"),
    [
        ("unimportable", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("quitter", "SystemExit: 5"),
        ("crasher", "SIGSEGV"),
        ("stuck", "no handshake within 3 s"),
        ("unprepared", "ValueError: not for such a small problem"),
        ("misspelt", "unknown hook 'eplbd_register_policy'"),
        ("silent", "registers no policy; define eplbd_register_policies"),
        ("future", "was written for policy API 2, this eplbd offers 1: install a release of"),
        ("undated", "add `eplbd_api = 1`"),
    ],
)
async def test_a_policy_that_cannot_start_says_why(guest: str, message: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)):
        async with host_of(guest, name=guest, start_s=3.0):
            pass


async def test_shares_travel_both_ways() -> None:
    async with host_of("weigher", name="weigher") as host:
        first = await ask(host, window(), weighted=True)
        assert isinstance(first, Proposal)
        assert first.shares is not None
        judged = validate(first.slots, experts=8, topology=TOPOLOGY, layers=2, shares=first.shares)
        assert judged.shares is not None
        second = await ask(host, window(), weighted=True, current=judged)
        assert isinstance(second, Proposal)
        assert second.shares is not None
        assert np.array_equal(second.shares, judged.shares), "it says what is in force again"


async def test_a_policy_that_needs_shares_is_not_asked_where_there_are_none() -> None:
    async with host_of("weigher", name="weigher") as host:
        failure = await ask(host, window())
        assert isinstance(failure, Failure)
        assert failure.outcome == "invalid"
        assert "needs `shares`, an engine that splits" in failure.detail
        assert isinstance(await ask(host, window(), weighted=True), Proposal)


async def test_a_broken_plugin_does_not_take_the_others_down() -> None:
    async with host_of("unimportable", "quitter", "future", "faulty") as host:
        assert isinstance(await ask(host, window()), Proposal)


async def test_an_exception_in_the_body_is_not_wrapped() -> None:
    with pytest.raises(ZeroDivisionError):
        async with host_of(name="hold"):
            raise ZeroDivisionError


async def test_listing_shows_offers_and_faults_with_provenance() -> None:
    guests = ("faulty", "unimportable", "future", "weigher")
    modules = tuple(str(GUESTS / f"{guest}.py") for guest in guests)
    found = await list_policies(config.Plugins(enabled=(), modules=modules), MEMORY_BYTES)
    rows = {row.plugin: row for row in found.rows}
    assert (rows["hold"].policy, rows["hold"].distribution) == ("hold", "eplbd")
    faulty = rows["faulty"]
    assert (faulty.policy, faulty.api, faulty.needs, faulty.error) == ("faulty", "1", "", "")
    assert rows["weigher"].needs == "shares"
    assert rows["unimportable"].policy == ""
    assert "nowhere_to_be_found" in rows["unimportable"].error
    assert "policy API 2" in rows["future"].error


async def test_listing_names_the_plugin_that_took_it_down() -> None:
    modules = (str(GUESTS / "faulty.py"), str(GUESTS / "crasher.py"))
    plugins = config.Plugins(enabled=(), modules=modules)
    with pytest.raises(PolicyError, match=r"(?s)SIGSEGV.*loading crasher .*crasher\.py"):
        await list_policies(plugins, MEMORY_BYTES)


async def test_a_spinning_guest_does_not_survive_the_daemon() -> None:
    program = f"""
import sys, anyio
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from test_policyhost import TRIGGER, ask, host_of, pid_of, window

async def main():
    async with host_of(options={{"fault": "ignores_signals"}}) as host:
        print("child", pid_of(host), flush=True)
        await ask(host, window(TRIGGER), 60.0)

anyio.run(main)
"""
    async with await anyio.open_process([sys.executable, "-c", program]) as daemon:
        assert daemon.stdout is not None
        said = ""
        with anyio.fail_after(30):
            while (found := re.search(r"child (\d+)\n", said)) is None:
                said += (await daemon.stdout.receive()).decode()
        pid = int(found[1])
        started = psutil.Process(pid).cpu_times().user
        await until(lambda: psutil.Process(pid).cpu_times().user > started + 0.1)  # it spins
        daemon.kill()
        await until(partial(is_gone, pid))
