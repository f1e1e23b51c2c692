"""The event stream between real sockets: order, gaps, restarts, slow and hostile readers."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
import zmq
import zmq.asyncio
from blockbuster import blockbuster_ctx

from eplbd.config import Config, load, stream_endpoints
from eplbd.core.events import Note, Stop
from eplbd.core.node import Node
from eplbd.core.overview import overview
from eplbd.core.settings import Settings
from eplbd.errors import ConfigError
from eplbd.runtime.follow import Follower, follow
from eplbd.runtime.stream import FRESH_S, Stream, open_stream
from eplbd.wire import stream as wire
from tests.runtime.conftest import PATIENCE_S

pytestmark = pytest.mark.anyio


def config(tmp_path: Path, **keys: object) -> Config:
    flags = {"daemon.socket": f"ipc://{tmp_path}/w.sock", "stream.interval_s": "0.05"}
    return load(flags=flags | {f"stream.{key}": str(value) for key, value in keys.items()}).config


@asynccontextmanager
async def telling(settings: Config) -> AsyncIterator[Stream]:
    """A stream that runs, of a daemon that has no group."""
    node = Node(Settings())
    with anyio.fail_after(PATIENCE_S), open_stream(settings, lambda: overview(node)) as stream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.run)
            yield stream
            tasks.cancel_scope.cancel()


@contextmanager
def connected(kind: int, endpoint: str) -> Iterator[zmq.asyncio.Socket]:
    """A peer that keeps to no rule but zmq's."""
    with zmq.asyncio.Context() as context, context.socket(kind) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(endpoint)
        yield peer


async def until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110 - libzmq's own thread has no event to wait for
        await anyio.sleep(0.002)


def tell(stream: Stream, *names: str) -> None:
    for name in names:
        stream.take(Note("info", name))


def names(events: list[wire.Told]) -> list[str]:
    return [event.event for event in events if isinstance(event, wire.Noted)]


async def heard(follower: Follower, count: int) -> list[str]:
    """Names of the next events, in the order in which they came."""
    found: list[str] = []
    while len(found) < count:
        found += names(await follower.next())
    return found


# --- order and gaps -----------------------------------------------------------------------------


async def test_a_reader_gets_what_is_kept_and_then_what_happens(tmp_path: Path) -> None:
    async with telling(config(tmp_path)) as stream:
        tell(stream, "a", "b")
        stream.take(Stop())
        with follow(config(tmp_path)) as follower:
            first = await follower.catch_up()
            assert names(first) == ["a", "b"]
            assert isinstance(first[-1], wire.Snapshot)
            assert len(first) == 3
            await until(lambda: stream.statistics().watched)
            tell(stream, "c", "d")
            assert await heard(follower, 2) == ["c", "d"]
        assert stream.statistics().events == 4


async def test_what_was_published_before_the_subscription_is_asked_for(tmp_path: Path) -> None:
    async with telling(config(tmp_path)) as stream:
        tell(stream, *"abc")
        with follow(config(tmp_path)) as follower:
            await until(lambda: stream.statistics().watched)
            tell(stream, "d")
            assert await heard(follower, 4) == list("abcd")


async def test_a_reader_that_fell_behind_gets_every_event_once(tmp_path: Path) -> None:
    """Its queue overflows; the numbers say so, and what was lost is still kept."""
    async with telling(config(tmp_path, keep_events=5_000)) as stream:
        with follow(config(tmp_path)) as follower:
            follower._subscriber.setsockopt(zmq.RCVHWM, 1)  # noqa: SLF001 - for connections to come
            await follower.catch_up()
            await until(lambda: stream.statistics().watched)
            expected = [f"{index}" for index in range(5_000)]
            with blockbuster_ctx("eplbd"):
                tell(stream, *expected)
            found: list[str] = []
            while found[-1:] != expected[-1:]:
                found += names(await follower.next())
            assert found == expected


@pytest.mark.parametrize("clock_back", [False, True])
async def test_a_restarted_daemon_is_followed_on(tmp_path: Path, clock_back: bool) -> None:
    """Also one whose numbers begin below those that were seen."""
    settings = config(tmp_path)
    with ExitStack() as watching:
        async with telling(settings) as stream:
            follower = watching.enter_context(follow(settings))
            tell(stream, "a")
            assert names(await follower.catch_up()) == ["a"]
        if clock_back:
            follower._seq += 3_600_000_000  # noqa: SLF001 - as if the clock had been an hour ahead
        async with telling(settings) as stream:
            tell(stream, "b")
            assert await heard(follower, 1) == ["b"]
            tell(stream, "c")
            assert await heard(follower, 1) == ["c"]


async def test_snapshots_are_made_for_those_who_want_them(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with telling(settings) as stream:
        tell(stream, "a")
        with connected(zmq.SUB, stream_endpoints(settings)[0]) as other:
            other.setsockopt(zmq.SUBSCRIBE, b"note")
            while not await other.poll(20):
                tell(stream, "b")
            assert (await other.recv_multipart())[0] == b"note"
            assert stream.statistics().snapshots == 0
            other.setsockopt(zmq.SUBSCRIBE, b"snap")
            while (await other.recv_multipart())[0] != b"snapshot":
                pass
            assert stream.statistics().watched
        await until(lambda: not stream.statistics().watched)


async def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    async with telling(config(tmp_path, keep_events=3)) as stream:
        tell(stream, *"abcdef")
        assert stream.statistics().kept == 3
        with follow(config(tmp_path)) as follower:
            assert names(await follower.catch_up()) == ["d", "e", "f"]


async def test_what_is_kept_is_bounded_in_bytes_as_well(tmp_path: Path) -> None:
    async with telling(config(tmp_path)) as stream:
        for _ in range(20):
            stream.take(Note("info", "large", {"text": "x" * (1 << 20)}))
        assert 0 < stream.statistics().kept < 10


@pytest.mark.parametrize("value", ["\udcff", 2**70, "x" * (wire.MAX_EVENT_BYTES + 1)])
async def test_what_cannot_be_told_is_counted_and_leaves_no_gap(
    tmp_path: Path, value: object
) -> None:
    async with telling(config(tmp_path)) as stream:
        tell(stream, "a")
        stream.take(Note("info", "strange", {"value": value}))
        tell(stream, "b")
        assert stream.statistics().refused == 1
        with follow(config(tmp_path)) as follower:
            assert names(await follower.catch_up()) == ["a", "b"]


async def test_a_stream_that_is_off_tells_nothing_and_binds_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path, enabled=False)
    async with telling(settings) as stream:
        tell(stream, "a")
        with pytest.raises(ConfigError, match=r"stream\.enabled is false"), follow(settings):
            pass
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 - nobody waits for this loop


# --- peers that are stuck or hostile ------------------------------------------------------------


async def test_a_reader_that_does_not_read_costs_no_wait(tmp_path: Path) -> None:
    settings = config(tmp_path, keep_events=10)
    async with telling(settings) as stream:
        with connected(zmq.SUB, stream_endpoints(settings)[0]) as stuck:
            stuck.setsockopt(zmq.SUBSCRIBE, b"")
            await until(lambda: stream.statistics().watched)
            with blockbuster_ctx("eplbd"):
                for _ in range(2_000):
                    stream.take(Note("info", "large", {"text": "x" * 10_000}))
            with follow(settings) as follower:
                assert len(names(await follower.catch_up())) == 10


async def test_a_question_that_is_none_is_counted_and_harms_nobody(tmp_path: Path) -> None:
    settings = config(tmp_path)
    events, replay = stream_endpoints(settings)
    async with telling(settings) as stream:
        with connected(zmq.DEALER, replay) as hostile, connected(zmq.XSUB, events) as listener:
            for frames in (
                [b""],
                [b"", b"1"],
                [b"", b"", b"12345678"],
                [b"x" * 8],
                [b"x", b"y" * 8],
            ):
                await hostile.send_multipart(frames)
            for said in (b"", b"\1nothing", b"\2", b"\0snapshot", b"junk"):
                await listener.send(said)
            await until(lambda: stream.statistics().refused == 5)
            tell(stream, "a")
            with follow(settings) as follower:
                assert names(await follower.catch_up()) == ["a"]


async def test_who_asks_in_a_loop_costs_few_looks(tmp_path: Path) -> None:
    settings = config(tmp_path, interval_s=60)
    async with telling(settings) as stream:
        with follow(settings) as follower:
            before = stream.statistics().snapshots
            started = anyio.current_time()
            for _ in range(50):
                await follower.catch_up()
            looks = stream.statistics().snapshots - before
            assert looks <= 1 + (anyio.current_time() - started) / FRESH_S


# --- the endpoints ------------------------------------------------------------------------------


async def test_both_sockets_have_the_configured_mode(tmp_path: Path) -> None:
    async with telling(config(tmp_path, socket_mode="0640")):
        for name in ("events.sock", "events.sock.replay"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


async def test_a_second_daemon_is_refused_by_the_name_of_the_setting(tmp_path: Path) -> None:
    async with telling(config(tmp_path)):
        with pytest.raises(ConfigError, match=r"^stream\.socket: another eplbd"):
            async with telling(config(tmp_path)):
                pass


async def test_nobody_is_followed_where_nobody_is(tmp_path: Path) -> None:
    settings = config(tmp_path)
    missing = r"there is no .*events\.sock: no daemon of this"
    with pytest.raises(ConfigError, match=missing), follow(settings):
        pass
    for name in ("events.sock", "events.sock.replay"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"nobody listens on .*events\.sock"), follow(settings):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every socket")
async def test_who_may_not_write_to_the_socket_is_told(tmp_path: Path) -> None:
    async with telling(config(tmp_path, socket_mode="0000")):
        with pytest.raises(ConfigError, match="this user may not"), follow(config(tmp_path)):
            pass


@pytest.mark.slow
async def test_a_daemon_that_does_not_answer_is_named(tmp_path: Path) -> None:
    settings = config(tmp_path)
    node = Node(Settings())
    with (
        open_stream(settings, lambda: overview(node)),
        follow(settings) as follower,
        pytest.raises(ConfigError, match=r"no answer on ipc://.*events\.sock\.replay"),
    ):
        await follower.catch_up()
